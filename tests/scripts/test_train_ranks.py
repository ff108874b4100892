"""train.py as two ranks: it trains, is interrupted, goes on exactly, and fails with one voice."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import train
from common import restarts
from common.restarts import forget, remember, restarted
from common.run_directory import read_progress
from training.checkpoints import Checkpoints

from npg import checkpoints
from tests.processes import as_torchrun_starts, fail, run_as_rank

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without it"
)
ROOT = Path(__file__).parents[2]
SHORT = ["--env", "Pendulum-v1", "--num-envs", "2", "--eval-freq", "400", "--eval-episodes", "1"]
# 2 ranks with 2 environments: rollouts of 256 and 80 samples.
RUNS = {
    "trpo": ["--normalize-obs", "--total-timesteps", "768", "--n-steps", "64"],
    "acktr": ["--total-timesteps", "480", "--save-freq", "160"],
    "ppo": ["--total-timesteps", "768", "--n-steps", "64"],
    "es": ["--total-timesteps", "2400", "--n-candidates", "4"],
}


def words(agent: str) -> list[str]:
    return [agent, *SHORT, *RUNS[agent]]


def _at_second_rollout(rank: int, act):
    """Checkpoints whose second rollout ends on rank 1 with something else."""

    class Disturbed(Checkpoints):
        rollouts = 0

        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            self.rollouts += 1
            if self.rollouts == 2 and rank == 1:
                act()

    return Disturbed


def _process(rank: int, ports: list[int], folder: Path) -> dict:
    found = {}

    def run(name, *arguments):
        found[name] = run_as_rank(train.main, [*arguments, "--no-progress-bar"], ports.pop())

    for agent in RUNS:
        run(f"{agent} whole", *words(agent), "--track-dir", str(folder / agent / "whole"))
        interrupt = partial(signal.raise_signal, signal.SIGTERM)
        train.Checkpoints = _at_second_rollout(rank, interrupt)
        run(f"{agent} broken", *words(agent), "--track-dir", str(folder / agent / "broken"))
        train.Checkpoints = Checkpoints
        torch.manual_seed(99 + rank)
        run(f"{agent} resumed", agent, "--resume", str(next((folder / agent / "broken").iterdir())))
    train.Checkpoints = _at_second_rollout(rank, fail)
    run("failed", *words("trpo"), "--track-dir", str(folder / "failed"))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return folder, as_torchrun_starts(partial(_process, folder=folder), folder, 3 * len(RUNS) + 1)


def only(directory: Path) -> Path:
    (run,) = directory.iterdir()
    return run


def parameters(run: Path) -> dict:
    return checkpoints.read(run / "last_model.zip")["states"]["policy"]


@pytest.mark.parametrize("agent", RUNS)
def test_two_ranks_train_and_rank_0_alone_speaks(agent, ranks):
    folder, (first, second) = ranks
    assert first[f"{agent} whole"][0] == second[f"{agent} whole"][0] == 0
    assert "checkpoint" in first[f"{agent} whole"][1]
    assert second[f"{agent} whole"][1:] == ("", "")
    rows = read_progress(only(folder / agent / "whole"))
    steps = [int(row["time/total_timesteps"]) for row in rows if row["time/total_timesteps"]]
    assert steps[-1] >= int(RUNS[agent][RUNS[agent].index("--total-timesteps") + 1])


@pytest.mark.parametrize("agent", RUNS)
def test_a_signal_on_one_rank_ends_both_and_resuming_goes_on_exactly(agent, ranks):
    folder, found = ranks
    assert found[1][f"{agent} broken"][0] == 128 + signal.SIGTERM
    assert [one[f"{agent} resumed"][0] for one in found] == [0, 0]
    assert "anew" not in found[0][f"{agent} resumed"][2]
    whole, resumed = (only(folder / agent / name) for name in ("whole", "broken"))
    expected = parameters(whole)
    for name, value in parameters(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_the_rank_that_fails_says_why_all_end(ranks):
    folder, (first, second) = ranks
    assert second["failed"][0] == "a bug on rank 1"
    assert first["failed"] == ("ended 1", "", "")
    assert parameters(only(folder / "failed"))


def test_restarted_processes_go_on_with_their_run(tmp_path, monkeypatch):
    asked, run, track_dir = ["trpo", "--env", "Pendulum-v1"], tmp_path / "run", tmp_path / "runs"
    assert restarted(asked, track_dir) == asked
    remember(run, track_dir)
    assert not track_dir.exists(), "torchrun is not there"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job/1")
    assert restarted(asked, track_dir) == asked, "nothing was begun"
    remember(run, track_dir)
    resumed = ["trpo", "--resume", str(run)]
    # The same torchrun, with another number of machines: it does not count that as a restart.
    assert restarted(asked, track_dir) == resumed
    monkeypatch.setattr(restarts, "_agent", lambda: "another machine")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted(asked, track_dir) == resumed
    assert restarted([*asked, "--resume=x"], track_dir) == [*asked, "--resume=x"]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert restarted(asked, track_dir) == asked, "an earlier job had the same name"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted(asked, track_dir) == asked, "which is forgotten"
    remember(run, track_dir)
    forget(track_dir)
    assert not list(track_dir.iterdir())


@pytest.mark.slow
def test_torchrun_starts_a_killed_rank_again_and_the_run_goes_on(tmp_path):
    words = ["trpo", *SHORT, "--n-steps", "64", "--total-timesteps", "15000", "--save-freq", "512"]
    words += ["--no-progress-bar", "--track-dir", str(tmp_path)]
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    with subprocess.Popen(
        [*program, "--max-restarts", "1", str(ROOT / "scripts" / "train.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as torchrun:
        while not list(tmp_path.glob("*/last_model.zip")) and torchrun.poll() is None:
            time.sleep(0.1)
        time.sleep(1)
        workers = subprocess.check_output(["pgrep", "-P", str(torchrun.pid)], text=True).split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        output, _ = torchrun.communicate(timeout=300)
    assert torchrun.returncode == 0, output
    assert "anew" not in output
    (run,) = (path for path in tmp_path.iterdir() if path.is_dir())
    steps = [int(row["time/total_timesteps"] or 0) for row in read_progress(run)]
    assert max(steps) >= 15_000
    assert not list(tmp_path.glob(".torchrun-*"))
