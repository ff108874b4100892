"""Tables in Markdown, from runs whose figures are known; and the committed page."""

import shutil

import pytest
from compare import main
from comparison import digest
from comparison.results import load
from training.command_line import ROOT

from npg.errors import ConfigurationError
from tests.scripts.comparison.synthetic import agent_run, optimizers, save

FEW = 50
PAGE = """before
<!-- comparison: somewhere -->
old
<!-- end -->
after
"""


def climb(end, seconds):
    """A straight line from 0 over 1,000 steps."""
    return [[i * 100, i * seconds / 10, i * end / 10] for i in range(11)]


def runs():
    """`a` climbs to 200 in 4 s, `b` to 100 in 10 s; `c` never ran."""
    ours = {f"a_E_{s}": agent_run("a", "E", s, [9 - s], climb(200, 4.0)) for s in range(3)}
    theirs = {f"b_E_{s}": agent_run("b", "E", s, [s], climb(100, 10.0)) for s in range(3)}
    return ours | theirs | {"c_E_0": None}


def cells(text, name):
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table(tmp_path):
    text = digest.digest(load(save(tmp_path, runs())), FEW)
    assert "### E" in text
    assert "python scripts/compare.py agents --seeds 5" in text
    assert "Made-up CPU" in text
    heads = cells(text, "agent")
    first, second, absent = (dict(zip(heads, cells(text, n), strict=True)) for n in "abc")
    assert first["final return"].startswith("8.00 [")
    assert (first["runs"], first["steps"], first["steps/s"]) == (
        "3",
        "1,000",
        "250 [250, 250]",
    )
    assert first["ratio"] == "–"
    assert second["final return"].startswith("1.00 [")
    assert second["P(a above)"] == "1.00 [1.00, 1.00]"
    assert second["trains to"] == "100"
    assert second["where it is after"] == "10 s"
    assert second["a after"] == "2 s"
    assert second["ratio"] == "0.20 [0.20, 0.20]"  # the seeds' curves are the same
    assert (second["p"], second["environments"]) == ("0.1", "1")
    assert absent["agent"] == "c (1 of 1 lack)"
    assert set(list(absent.values())[2:]) == {"–"}


def test_steps_where_seconds_do_not_count(tmp_path):
    text = digest.digest(load(save(tmp_path, runs(), wall_clock_counts=False)), FEW)
    row = dict(zip(cells(text, "agent"), cells(text, "b"), strict=True))
    assert (row["where it is after"], row["a after"]) == ("1,000 steps", "500 steps")
    assert row["steps/s"] == "–"
    assert "- Seconds are not comparable here" in text
    assert "Where a is behind" not in text


def test_who_is_sooner_counts_in_steps_where_seconds_do_not(tmp_path):
    """`a` takes a hundredth of the seconds of `b`, and twice its steps."""
    sides = {"a": climb(100, 1.0), "b": climb(200, 100.0)[:6]}
    both = {
        f"{name}_E_{s}": agent_run(name, "E", s, [1], curve)
        for name, curve in sides.items()
        for s in range(2)
    }
    said = "Where a is behind: it takes longer to the return"
    assert said not in digest.digest(load(save(tmp_path / "clock", both)), FEW)
    assert said in digest.digest(load(save(tmp_path / "none", both, wall_clock_counts=False)), FEW)


def test_what_is_to_be_known_stands_above(tmp_path):
    crowded = runs()
    crowded["a_E_1"] |= {"seconds": 4.0, "cpu_seconds": 1.0}
    crowded["b_E_1"]["arguments"] = {"n_steps": 64}
    text = digest.digest(load(save(tmp_path, crowded)), FEW)
    assert "\n- 1 of 7 runs is missing: c_E_0.\n" in text
    assert "\n- 1 of 7 runs had less than 90% of a core" in text
    assert "\n- The runs of b on E differ in learning_rate, n_steps: " in text


def test_a_curve_that_begins_at_its_end(tmp_path):
    flat = {
        f"b_E_{s}": agent_run("b", "E", s, [s], [[100, 0.0, 50], [1000, 9, 50]]) for s in (0, 1)
    }
    ours = {f"a_E_{s}": agent_run("a", "E", s, [9], climb(200, 4.0)) for s in (0, 1)}
    text = digest.digest(load(save(tmp_path, ours | flat)), FEW)
    row = dict(zip(cells(text, "agent"), cells(text, "b"), strict=True))
    assert (row["where it is after"], row["a after"], row["ratio"]) == ("0 s", "1 s", "–")


def test_what_is_never_reached(tmp_path):
    slow = {f"a_E_{s}": agent_run("a", "E", s, [0], climb(99, 4.0)) for s in range(3)}
    text = digest.digest(load(save(tmp_path, runs() | slow)), FEW)
    row = dict(zip(cells(text, "agent"), cells(text, "b"), strict=True))
    assert (row["a after"], row["ratio"]) == ("not reached", "never")


def test_where_the_first_is_behind_is_said(tmp_path):
    sides = {
        "a": ([1, 2, 3, 4], climb(100, 10.0)),
        "above": ([6, 7, 8, 9], climb(50, 10.0)),
        "higher": ([1, 2, 3, 4], climb(101, 99.0)),
        "sooner": ([1, 2, 3, 4], climb(100, 9.0)),
        "nowhere": ([0, 1, 2, 3], climb(50, 10.0)),
    }
    text = digest.digest(
        load(
            save(
                tmp_path,
                {
                    f"{name}_E_{s}": agent_run(name, "E", s, [final], curve)
                    for name, (finals, curve) in sides.items()
                    for s, final in enumerate(finals)
                },
            )
        ),
        FEW,
    )
    assert (
        "Where a is behind: it ends below above; it trains to less than higher; it takes longer to "
        "the return they end training with than sooner." in text
    )


def test_page_is_brought_up_to_date(tmp_path, capsys):
    plots = save(tmp_path / "somewhere", runs()) / "plots"
    plots.mkdir()
    (plots / "learning_E_steps.png").touch()
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert main(["digest", str(page)]) == 0
    assert "somewhere" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("before\n<!-- comparison: somewhere -->\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    assert "| a | 3 |" in text
    assert "](somewhere/plots/learning_E_steps.png)" in text
    assert "_seconds.png" not in text  # which is not there
    assert main(["digest", str(page)]) == 0
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("nothing\n", "has no marks"),
        (PAGE.replace("<!-- end -->\n", ""), "take turns"),
        (PAGE.replace("<!-- end -->\n", "") + PAGE, "take turns"),
        (f"<!-- end -->\n{PAGE}", "take turns"),
        (PAGE, "holds no comparison"),
    ],
)
def test_pages_that_cannot_be_written(text, message, tmp_path):
    page = tmp_path / "page.md"
    if text is not None:
        page.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        digest.write(page, FEW)
    assert text is None or page.read_text() == text


def test_optimizers_are_refused(tmp_path):
    found = load(optimizers(tmp_path, seeds=1))
    with pytest.raises(ConfigurationError, match="of agents"):
        digest.digest(found, FEW)


def test_the_committed_page_is_what_the_committed_runs_give(tmp_path):
    """Nobody edits its figures by hand, and no run is committed without them."""
    docs = ROOT / "docs"
    shutil.copytree(docs / "results", tmp_path / "results")
    shutil.copy(docs / "results.md", tmp_path)
    digest.write(tmp_path / "results.md")
    assert (tmp_path / "results.md").read_text() == (docs / "results.md").read_text()
