"""What a run that did not end by itself leaves behind, and what --resume makes of it."""

import signal

import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from train import main
from training.checkpoints import Checkpoints

from agents import TRPO
from npg import checkpoints
from tests.agents.checkpoints import equal_states

RUN = (
    "trpo --env CartPole-v1 --num-envs 1 --n-steps 64 --critic gauss-newton --eval-freq 0 --seed 3"
)
RUN += " --eval-episodes 1 --normalize-obs --normalize-reward --no-progress-bar"

pytestmark = pytest.mark.usefixtures("default_interrupts")


def trained(track_dir, *words):
    code = main([*RUN.split(), "--track-dir", str(track_dir), *map(str, words)])
    return code, track_dir / "trpo_CartPole-v1_1" / "last_model.zip"


def resumed(last, steps=256):
    assert main(f"trpo --resume {last.parent} --total-timesteps {steps}".split()) == 0
    return last


def states(file):
    """What a checkpoint holds, without the environments and the generators beside them."""
    found = checkpoints.read(file)["states"]
    environments = found.pop("environments", None)
    found["training_optim_state"].pop("generators")
    return found, environments


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run, and one that ends by itself where the others are broken off."""
    ends = {}
    for steps in (128, 256):
        track_dir = tmp_path_factory.mktemp("whole")
        code, ends[steps] = trained(track_dir, "--total-timesteps", steps)
        assert code == 0
    return ends


@pytest.fixture
def at_step(monkeypatch):
    """Lets something happen in the environment at a step, once; it may change the observation."""

    def arrange(number, happen):
        step, count = CartPoleEnv.step, iter(range(10**6))

        def counted(self, action):
            obs, *rest = step(self, action)
            changed = happen() if next(count) == number else None
            return (obs if changed is None else changed), *rest

        monkeypatch.setattr(CartPoleEnv, "step", counted)

    return arrange


def raising():
    raise ZeroDivisionError("a bug of the environment")


def signalled(*numbers):
    def happen():
        for number in numbers:
            signal.raise_signal(number)

    return happen


def test_after_an_error_a_run_goes_on_from_before_the_rollout(at_step, whole, tmp_path, capsys):
    """Its environments, and the samples that they gave, are lost; the normaliser is not spoiled."""
    for name, happen in {"raised": raising, "nan": lambda: np.full(4, np.nan, np.float32)}.items():
        at_step(150, happen)
        if happen is raising:
            with pytest.raises(ZeroDivisionError) as raised:
                trained(tmp_path / name, "--total-timesteps", 256)
            assert "--resume goes on from before this rollout" in raised.value.__notes__[-1]
            last = tmp_path / name / "trpo_CartPole-v1_1" / "last_model.zip"
        else:
            code, last = trained(tmp_path / name, "--total-timesteps", 256)
            assert code == 1
        ours, environments = states(last)
        assert environments is None
        assert equal_states(ours, states(whole[128])[0])
        assert TRPO.load(last).num_timesteps == 128
        capsys.readouterr()
        assert TRPO.load(resumed(last)).num_timesteps == 256
        said = capsys.readouterr().err
        assert "note: episodes begin anew, since the checkpoint was saved without" in said


@pytest.mark.parametrize(
    ("numbers", "code", "steps"),
    [
        ([signal.SIGTERM], 128 + signal.SIGTERM, 192),  # after the update
        ([signal.SIGINT], 128 + signal.SIGINT, 192),
        (
            [signal.SIGINT, signal.SIGINT],
            128 + signal.SIGINT,
            0,
        ),  # at once: from the last checkpoint
    ],
)
def test_what_was_stopped_goes_on_as_the_uninterrupted_run(
    numbers, code, steps, at_step, whole, tmp_path, capsys
):
    at_step(150, signalled(*numbers))
    ended, last = trained(tmp_path, "--total-timesteps", 256)
    output, error = capsys.readouterr()
    assert ended == code
    assert TRPO.load(last).num_timesteps == steps
    if steps:
        assert f"interrupted after {steps} steps" in output
    else:
        assert "ended at once: what came after the last checkpoint is lost" in error
    assert equal_states(*(checkpoints.read(f)["states"] for f in (resumed(last), whole[256])))
    assert "begin anew" not in capsys.readouterr().err


def test_a_rollout_that_takes_too_long_is_given_up(at_step, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Checkpoints, "PATIENCE", 0.0)
    at_step(150, signalled(signal.SIGTERM))
    code, last = trained(tmp_path, "--total-timesteps", 256)
    output, error = capsys.readouterr()
    assert code == 128 + signal.SIGTERM
    assert "the rollout is given up: its samples are lost" in error
    assert "interrupted after 128 steps" in output
    ours, environments = states(last)
    assert environments is None
    assert equal_states(ours, states(whole[128])[0])


def test_a_signal_in_the_last_update_ends_at_its_end(whole, tmp_path, monkeypatch):
    """However long it took, it is whole."""
    monkeypatch.setattr(Checkpoints, "PATIENCE", 0.0)
    train = TRPO.train

    def signalled_in(self):
        if self.num_timesteps == 256:
            signal.raise_signal(signal.SIGTERM)
        train(self)

    monkeypatch.setattr(TRPO, "train", signalled_in)
    code, last = trained(tmp_path, "--total-timesteps", 256)
    assert code == 128 + signal.SIGTERM
    assert equal_states(*(checkpoints.read(f)["states"] for f in (last, whole[256])))
    assert states(last)[1] is not None


def test_a_goal_in_the_middle_of_a_rollout_leaves_no_environments(tmp_path):
    words = ["--total-timesteps", 1000, "--stop-at", 1, "--eval-freq", 96]
    code, last = trained(tmp_path, *words)
    assert code == 0
    assert TRPO.load(last).num_timesteps == 96
    assert states(last)[1] is None


def test_the_first_checkpoint_comes_before_the_first_step(at_step, tmp_path, whole):
    class Killed(BaseException):
        """Nothing catches it, as nothing catches kill -9."""

    def kill():
        raise Killed

    at_step(10, kill)
    with pytest.raises(Killed):
        trained(tmp_path, "--total-timesteps", 256)
    last = tmp_path / "trpo_CartPole-v1_1" / "last_model.zip"
    assert TRPO.load(last).num_timesteps == 0
    assert equal_states(*(checkpoints.read(f)["states"] for f in (resumed(last), whole[256])))
