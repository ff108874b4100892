"""The page holds everything, safely, and needs nothing from elsewhere."""

import re
from html.parser import HTMLParser

import pytest
from common import picture
from comparison import page, plots
from comparison.intervals import Interval
from comparison.layout import interval, number
from comparison.results import load
from PIL import Image

from npg import optim
from tests.scripts.comparison.synthetic import (
    SCRIPT,
    agent_run,
    diverged,
    optimizer_run,
    save,
    too_slow,
)

STATUSES = ("finished", "failed", "diverged", "too slow", "missing")
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Tree(HTMLParser):
    """Elements, checked to be closed in order, and the text of the cells."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.rows = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(params=["agent_report", "optimizer_report"])
def report(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def tree(report):
    return Tree((report / page.PAGE).read_text())


class TestBothKinds:
    def test_needs_nothing_from_elsewhere(self, tree):
        for _, attributes in tree.elements:
            for name in ("src", "href", "xlink:href"):
                assert attributes.get(name, "#").startswith(("#", "data:"))
        assert len(tree.of("script")) == 1

    def test_every_plot_is_there_with_words_and_files(self, report, tree):
        shown = [a["id"].removeprefix("plot-") for a in tree.of("figure")]
        plots = tree.of("svg")
        assert len(shown) == len(set(shown)) == len(plots) > 5
        assert all(len(a["aria-label"]) > 30 for a in plots)
        files = {p.name for p in (report / page.PLOTS).iterdir()}
        assert files == {f"{name}.{kind}" for name in shown for kind in ("png", "svg")}
        for path in (report / page.PLOTS).glob("*.png"):
            with Image.open(path) as image:
                assert image.width > 500

    def test_ids_are_unique_where_something_refers_to_them(self, tree):
        ids = [a["id"] for _, a in tree.elements if "id" in a]
        assert len(ids) == len(set(ids))
        targets = {a["href"][1:] for a in tree.of("a")}
        assert targets <= set(ids)

    def test_what_runs_say_is_text(self, report):
        text = (report / page.PAGE).read_text()
        assert SCRIPT not in text
        assert "&lt;script&gt;document.title" in text

    def test_every_run_is_in_the_table_with_its_command(self, report, tree):
        text = (report / page.PAGE).read_text()
        runs = load(report).runs
        statuses = [row[0] for row in tree.rows if row and row[0] in STATUSES]
        assert sorted(statuses) == sorted(run.outcome for run in runs)
        for run in runs:
            assert run.command in text

    def test_numbers_are_in_the_csv(self, report):
        lines = (report / page.CSV).read_text().splitlines()
        assert len(lines) > 500


class TestAgents:
    def test_seconds_compare(self, agent_report):
        assert "not comparable" not in (agent_report / page.PAGE).read_text()

    def test_sentence_from_the_numbers(self, agent_report):
        text = (agent_report / page.PAGE).read_text()
        assert re.search(r"trpo is above sb3:ppo on Hopper-v5 with probability 1\.00 \[", text)

    def test_settings_side_by_side(self, agent_report):
        rows = Tree((agent_report / page.PAGE).read_text()).rows
        assert ["learning_rate", *["0.001"] * 4] in rows
        assert ["torch", "2.13.0"] in rows
        assert ["cpu", "Made-up CPU"] in rows

    @pytest.mark.parametrize(
        ("seconds", "scales"), [(40.0, ("linear", "linear")), (41.0, ("linear", "log"))]
    )
    def test_curves_of_very_different_lengths(self, tmp_path, monkeypatch, seconds, scales):
        curves = {
            "a": ((100, 1.0, 0.0), (200, 10.0, 9.0)),
            "b": ((100, 1.0, 0.0), (200, seconds, 9.0)),
        }
        runs = {name: agent_run(name, "E", 0, [9.0], curve) for name, curve in curves.items()}
        drawn = {}
        save_picture = picture.save

        def watched(figure, path):
            drawn[path.stem] = figure.axes[0]
            save_picture(figure, path)

        monkeypatch.setattr(picture, "save", watched)
        page.write(load(save(tmp_path, runs)), tmp_path)
        axes = (drawn["learning_E_steps"], drawn["learning_E_seconds"])
        assert tuple(a.get_xscale() for a in axes) == scales

    def test_steps_on_a_logarithmic_axis_are_counted_in_thousands(self, tmp_path):
        curves = {
            "a": ((1000, 1.0, 0.0), (2000, 2.0, 9.0)),
            "b": ((1000, 1.0, 0.0), (100_000, 2.0, 9.0)),
        }
        runs = {name: agent_run(name, "E", 0, [9.0], curve) for name, curve in curves.items()}
        page.write(load(save(tmp_path, runs)), tmp_path)
        picture_file = (tmp_path / page.PLOTS / "learning_E_steps.svg").read_text()
        assert {"1k", "10k", "100k"} <= set(re.findall(r">([^<>]*)</text>", picture_file))

    def test_agent_without_a_run_somewhere_is_named(self, tmp_path):
        runs = {
            f"{n}_{t}_{s}": agent_run(n, t, s, [float(s)])
            for n in "ab"
            for t in "EF"
            for s in (0, 1)
        }
        for seed in (0, 1):
            runs[f"b_F_{seed}"] |= {"status": "failed", "error": "boom", "final": [], "curve": []}
        path = page.write(load(save(tmp_path, runs)), tmp_path, repetitions=10)
        assert ["b", *"–––", "an environment without a finished run"] in Tree(path.read_text()).rows

    def test_nothing_finished_is_a_page_too(self, tmp_path):
        run = agent_run("a", "E", 0, [], status="failed", error="RuntimeError: crashed")
        path = page.write(load(save(tmp_path, {"a_E_0": run, "a_E_1": None})), tmp_path)
        text = path.read_text()
        assert "No run has finished yet." in text
        assert "RuntimeError: crashed" in text

    def test_odd_names(self, tmp_path):
        names = ["$x^{_", "_hidden", SCRIPT, "a\"b'c&d"]
        runs = {
            f"r{n}{s}": agent_run(name, f"E{SCRIPT}$_", s, [1.0 + s])
            for n, name in enumerate(names)
            for s in (0, 1)
        }
        path = page.write(load(save(tmp_path, runs)), tmp_path, repetitions=10)
        tree = Tree(path.read_text())
        assert all(any(name in row for row in tree.rows) for name in names)
        assert len(tree.of("script")) == 1

    def test_one_run_has_no_intervals(self, tmp_path):
        save(tmp_path, {"r": agent_run("a", "E", 0, [7.0])})
        (tmp_path / "comparison.json").write_text('{"kind": "agent"}')  # and nothing else is known
        path = page.write(load(tmp_path), tmp_path)
        assert ["E", "a", "1 of 1", "7", "7", "0.000", "100"] in Tree(path.read_text()).rows

    def test_same_results_give_the_same_page(self, tmp_path):
        runs = {f"r{s}": agent_run("a", "E", s, [float(s)]) for s in range(3)}
        results = load(save(tmp_path, runs))
        first, second = (
            page.write(results, tmp_path / name, repetitions=50).read_text() for name in "ab"
        )
        assert first == second

    def test_pictures_that_are_not_on_the_page_any_more_go(self, tmp_path):
        def pictures(task):
            run = agent_run("a", task, 0, [7.0])
            page.write(load(save(tmp_path, {"r": run})), tmp_path, repetitions=10)
            return {path.name for path in (tmp_path / page.PLOTS).iterdir()}

        of_the_user = {"mine.png", "learning_E_steps.txt"}
        (tmp_path / page.PLOTS).mkdir()
        for name in of_the_user:
            (tmp_path / page.PLOTS / name).write_text("")
        first, second = pictures("E"), pictures("F")
        assert of_the_user <= first & second
        assert "learning_E_steps.png" in first
        drawn = {name.replace("_E", "_F") for name in first - of_the_user}
        assert second - of_the_user == drawn

    def test_failed_write_leaves_the_old_page(self, tmp_path, monkeypatch):
        results = load(save(tmp_path, {"r": agent_run("a", "E", 0, [1.0])}))
        (tmp_path / page.PAGE).write_text("old")
        monkeypatch.setattr(page, "TEMPLATES", tmp_path / "nowhere")
        with pytest.raises(Exception, match=r"report\.html"):
            page.write(results, tmp_path, repetitions=10)
        assert (tmp_path / page.PAGE).read_text() == "old"
        assert not list(tmp_path.glob("**/.*"))


class TestOptimizers:
    def test_seconds_are_marked(self, optimizer_report):
        tree = Tree((optimizer_report / page.PAGE).read_text())
        heads = {text for row in tree.rows for text in row}
        assert {"seconds to target (not comparable)", "ms a step (not comparable)"} <= heads

    def test_every_optimizer_has_a_line_of_its_own(self):
        styles = [plots._style(index, points=True) for index, _ in enumerate(optim.names())]
        for look in ("ls", "marker"):
            assert len({(style["color"], style[look]) for style in styles}) == len(styles)

    def test_diverged_rates_are_counted(self, optimizer_report):
        rows = Tree((optimizer_report / page.PAGE).read_text()).rows
        spread = [row for row in rows if row[:3] == ["digits-mlp", "adamw", "4"]]
        assert spread[0][3] == "0.001*"
        assert spread[0][-3:] == ["2 of 8", "0 of 8", "0"]

    def test_too_slow_runs_are_counted(self, optimizer_report):
        rows = Tree((optimizer_report / page.PAGE).read_text()).rows
        (spread,) = [row for row in rows if row[:3] == ["digits-autoencoder", "kfac", "4"]]
        assert spread[-3:] == ["0 of 8", "1 of 8", "0"]

    def test_target_may_be_chosen(self, tmp_path):
        runs = {f"r{s}": optimizer_run("a", "T", s, 0.1, [2.0, 1.0]) for s in (0, 1)}
        results = load(save(tmp_path, runs, target={"loss": 1.5}))
        text = page.write(results, tmp_path, repetitions=10).read_text()
        assert ["T", "a", "loss 1.5", "2 of 2", "20", "1", "50", "300"] in Tree(text).rows
        assert "asked for" in text

    def test_without_a_target_one_is_chosen(self, optimizer_report):
        text = (optimizer_report / page.PAGE).read_text()
        assert "the optimizer that ends highest" in text
        assert "asked for" not in text

    def test_no_rate_gets_through(self, tmp_path):
        runs = {f"{name}_T_0_0.1": optimizer_run(name, "T", 0, 0.1, [1.0]) for name in "abc"}
        runs["a_T_0_0.1"] |= diverged(runs["a_T_0_0.1"])
        runs["b_T_0_0.1"] |= too_slow(runs["b_T_0_0.1"])
        path = page.write(load(save(tmp_path, runs)), tmp_path, repetitions=10)
        rows = Tree(path.read_text()).rows
        assert ["T", "a", "0", "diverged", *"–––––"] in rows
        assert ["T", "a", "1", *"–––––", "1 of 1", "0 of 1", "0"] in rows
        assert ["T", "b", "0", "too slow", *"–––––"] in rows
        assert ["T", "b", "1", *"–––––", "0 of 1", "1 of 1", "0"] in rows

    def test_one_seed_does_not_get_through(self, tmp_path):
        """What it failed by is the reason, not how the others ended."""
        runs = {f"a_T_{s}_0.1": optimizer_run("a", "T", s, 0.1, [1.0]) for s in range(3)}
        runs["a_T_1_0.1"] |= diverged(runs["a_T_1_0.1"])
        runs["b_T_0_0.1"] = optimizer_run("b", "T", 0, 0.1, [1.0], final_loss=None)
        path = page.write(load(save(tmp_path, runs)), tmp_path, repetitions=10)
        rows = Tree(path.read_text()).rows
        assert ["T", "a", "0", "diverged", *"–––––"] in rows
        assert ["T", "b", "0", "–", *"–––––"] in rows


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12345.6, "12,346"),
        (499.62, "499.6"),
        (0.012345, "0.0123"),
        (1.2e-7, "1.2e-07"),
        (-70.25, "-70.2"),
        (float("inf"), "∞"),
        (float("nan"), "–"),
        (300000, "300,000"),
        (4.19e28, "4.19e+28"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (288.7, 276, 293.71, "288.7 [276.0, 293.7]"),
        (500.0, 500.0, 500.0, "500 [500, 500]"),
        (2383.4, 980.2, 2446, "2,383 [980, 2,446]"),
        (0.0316, 0.03094, 0.0324, "0.0316 [0.0309, 0.0324]"),
        (1.5e-7, 1e-7, 2e-7, "1.50e-07 [1.00e-07, 2.00e-07]"),
        (1e12, 2.5e11, 1e30, "1.00e+12 [2.50e+11, 1.00e+30]"),
        (7.25, float("nan"), float("nan"), "7.25"),
    ],
)
def test_interval(value, low, high, text):
    assert interval(Interval(value, low, high)) == text
