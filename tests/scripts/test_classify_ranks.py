"""classify.py as two ranks, against one process with the whole batch."""

import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from classification import loop, options, session
from classify import main
from common.ranks import Ranks

from npg.errors import ConfigurationError
from tests.processes import as_torchrun_starts, fail, run_as_rank
from tests.scripts.classified import classify, described, rows_of, saved

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without it"
)
# What draws no labels ends, to rounding, where one process with the whole batch does.
RUNS = {
    "adamw": ["--model", "cnn", "--batch-size", "256", "--epochs", "1"],
    # Pixels that are never lit make singular moments, whose roots with a small ε are rounding.
    "shampoo": [
        *["--model", "linear", "--batch-size", "256", "--epochs", "1"],
        *["--option", "epsilon=1e-4"],
    ],
    "sophia-h": ["--model", "linear", "--batch-size", "256", "--epochs", "1"],
    "kfac": [
        *["--model", "small", "--batch-size", "0", "--epochs", "3"],
        *["--option", "fisher=exact", "--option", "quadratic_samples=null"],
    ],
}
INTERRUPTED = ["--optimizer", "kfac", "--model", "linear", "--batch-size", "256", "--epochs", "2"]


def words(optimizer):
    return ["--optimizer", optimizer, *RUNS[optimizer]]


def _batch_that(rank, own, act):
    """Loop._batch, which on one rank does something at the third step."""
    original = loop.Loop._batch

    def batch(self, step):
        if step == 3 and rank == own:
            act()
        return original(self, step)

    return original, batch


def _process(rank: int, ports: list[int], folder: Path) -> dict:
    found = {}

    def run(name, *arguments):
        found[name] = run_as_rank(main, [*arguments, "--no-progress-bar"], ports.pop())

    for name in RUNS:
        run(name, *words(name), "--track-dir", str(folder / name))
    run("whole", *INTERRUPTED, "--track-dir", str(folder / "whole"))
    original, loop.Loop._batch = _batch_that(rank, 1, lambda: signal.raise_signal(signal.SIGINT))
    run("broken", *INTERRUPTED, "--track-dir", str(folder / "broken"))
    loop.Loop._batch = original
    torch.manual_seed(99 + rank)
    run("resumed", "--resume", str(next((folder / "broken").iterdir())))
    # The last: who fails leaves the group as it is.
    loop.Loop._batch = _batch_that(rank, 1, fail)[1]
    run("failed", *INTERRUPTED, "--track-dir", str(folder / "failed"))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return folder, as_torchrun_starts(partial(_process, folder=folder), folder, len(RUNS) + 4)


def only(directory):
    (run,) = directory.iterdir()
    return run


@pytest.mark.parametrize("optimizer", RUNS)
def test_two_ranks_train_as_one_process(optimizer, ranks, tmp_path):
    folder, found = ranks
    assert [one[optimizer][0] for one in found] == [0, 0]
    together = only(folder / optimizer)
    alone = classify(tmp_path, *words(optimizer))
    for ours, expected in zip(rows_of(together), rows_of(alone), strict=True):
        for name, value in expected.items():  # of 359 samples one may be decided by rounding
            figure = name.startswith("test/") and name != "test/loss"
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=0.01 if figure else 0), name
    for name in ("last.zip", "best.zip"):
        ours, expected = saved(together, name)["model"], saved(alone, name)["model"]
        for key, value in expected.items():
            torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-5)


def test_rank_0_alone_speaks_and_writes(ranks):
    folder, (first, second) = ranks
    for name in RUNS:
        assert "checkpoint" in first[name][1]
        assert second[name][1:] == ("", "")
        names = sorted(path.name.split(".")[0] for path in only(folder / name).iterdir())
        expected = ["", "best", "config", "events", "last", "learning_curve", "progress"]
        assert names == expected


def test_a_signal_on_one_rank_ends_both_and_resuming_goes_on_exactly(ranks):
    folder, found = ranks
    assert [one["broken"][0] for one in found] == [130, 130]
    assert [one["resumed"][0] for one in found] == [0, 0]
    broken, whole = only(folder / "broken"), only(folder / "whole")
    assert described(saved(broken)) == described(saved(whole))
    assert rows_of(broken) == rows_of(whole)


def test_one_rank_says_why_all_end(ranks):
    _, (first, second) = ranks
    assert second["failed"][0] == "a bug on rank 1"
    assert first["failed"] == ("ended 1", "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "127"], "must be a multiple of their number, 2; got 127"),
        (["--objective", "f1"], "--objective f1 is of the whole batch: run it without torchrun"),
    ],
)
def test_what_ranks_cannot_share_out_is_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        session.start(options.parse(arguments), Ranks(0, 2, 0))
