"""Runs made a second time."""

import json
from dataclasses import replace

import pytest
from compare import main
from comparison import agent_run, files, repeat
from comparison.options import AgentRun, Repeat
from comparison.results import load

from npg.errors import ConfigurationError
from tests.scripts.comparison import synthetic


@pytest.fixture
def compared(tmp_path):
    """A comparison of one real run of a moment."""
    preset = tmp_path / "tiny.yml"
    preset.write_text("CartPole-v1: {arguments: {n_steps: 64}}\n")
    directory = tmp_path / "comparison"
    name = files.run_name("trpo", "CartPole-v1", 1)
    place = directory / files.RUNS / name
    options = AgentRun("trpo", "CartPole-v1", 1, 128, str(preset), place)
    assert agent_run.run(options) == 0
    files.write(directory / "comparison.json", synthetic.about("agent", [name]))
    return directory, place / files.RESULT


@pytest.fixture
def made_once(monkeypatch):
    """Makes the runs again the first time; later comparisons are with what that gave."""
    run_all, kept = repeat.run_all, []

    def once(jobs, *others):
        if not kept:
            outcome = run_all(jobs, *others)
            kept.append((outcome, [(job.directory / files.RESULT).read_bytes() for job in jobs]))
        outcome, contents = kept[0]
        for job, content in zip(jobs, contents, strict=True):
            job.directory.mkdir(parents=True, exist_ok=True)
            (job.directory / files.RESULT).write_bytes(content)
        return outcome

    monkeypatch.setattr(repeat, "run_all", once)


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("made_once")
def test_the_numbers_are_compared(compared, capsys):
    directory, result = compared
    assert main(["repeat", str(directory)]) == 0
    assert "trpo_CartPole-v1_1: the same numbers" in said(capsys)

    content = json.loads(result.read_text())
    del content["diagnostics"]["target_kl"]  # which earlier versions did not record
    result.write_text(json.dumps(content))
    assert main(["repeat", str(directory)]) == 0

    content["diagnostics"]["accepted"] = [[1, 2]]
    result.write_text(json.dumps(content))
    assert main(["repeat", str(directory)]) == 1
    assert "not as it was: the accepted" in said(capsys)

    del content["diagnostics"]["accepted"]
    content["final"][3] += 1
    content["arguments"]["gamma"] = 0.9
    result.write_text(json.dumps(content))
    assert main(["repeat", str(directory)]) == 1
    assert "not as it was: gamma is set otherwise, the final returns" in said(capsys)


def test_what_no_longer_runs(compared, capsys):
    directory, result = compared
    content = json.loads(result.read_text())
    content["command"] = content["command"].replace("tiny.yml", "gone.yml")
    result.write_text(json.dumps(content))
    assert main(["repeat", str(directory)]) == 1
    assert "trpo_CartPole-v1_1: could not be repeated: error: there is no preset file" in said(
        capsys
    )


def test_differences(tmp_path):
    synthetic.agents(tmp_path, seeds=2)
    first, second = load(tmp_path).select("sb3:ppo", "CartPole-v1")
    assert repeat.differences(first, first) == []
    assert repeat.differences(first, second) == ["the returns in training", "the final returns"]
    changed = replace(first, steps=7, diagnostics={**first.diagnostics, "kl": [[1, 2]]})
    assert repeat.differences(first, changed) == ["7 steps in place of 50,000", "the kl"]


def test_choice(tmp_path):
    synthetic.agents(tmp_path, seeds=3)
    options = Repeat(tmp_path, runs=2, match="sb3-ppo_*")
    chosen = repeat.choose(options)
    assert [run.name for run in chosen] == ["sb3:ppo"] * 2
    assert [run.directory for run in repeat.choose(options)] == [run.directory for run in chosen]
    everything = repeat.choose(Repeat(tmp_path, runs=99))
    assert all(run.finished for run in everything)
    assert len(everything) == sum(run.finished for run in load(tmp_path).runs)


@pytest.mark.parametrize(
    ("make", "changed", "message"),
    [
        (synthetic.agents, {"runs": 0}, "runs must be at least 1"),
        (synthetic.agents, {"jobs": 0}, "jobs must be at least 1"),
        (synthetic.agents, {"match": "nobody*"}, "no finished run"),
        (synthetic.optimizers, {}, "runs of agents can be repeated"),
    ],
)
def test_what_cannot_be_repeated(make, changed, message, tmp_path):
    make(tmp_path, seeds=1)
    with pytest.raises(ConfigurationError, match=message):
        repeat.choose(Repeat(tmp_path, **changed))
