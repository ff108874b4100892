"""Where the environments are is part of a checkpoint, if it is wanted and can be had."""

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback

from agents import TRPO
from envs import MetricBanditVecEnv, make
from tests.agents.checkpoints import equal_states


class Saved(BaseCallback):
    """Saves before the second rollout."""

    def __init__(self, file) -> None:
        super().__init__()
        self.file, self.starts = file, iter(range(100))

    def _on_rollout_start(self) -> None:
        if next(self.starts) == 1:
            self.model.save(self.file, include=["environments"])

    def _on_step(self) -> bool:
        return True


def bandits(seed):
    inputs = np.random.default_rng(0).normal(size=(30, 3))
    return MetricBanditVecEnv(inputs, np.arange(30) % 2, num_envs=4, seed=seed)


def cartpoles(seed):
    return make("CartPole-v1", num_envs=2, seed=seed, backend="gymnasium", normalize_obs=True)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "agent.zip"


@pytest.mark.parametrize("made", [cartpoles, bandits])
def test_training_goes_on_as_if_nothing_had_happened(made, file):
    whole = TRPO("MlpPolicy", made(1), n_steps=32, seed=0)
    whole.learn(4 * 32 * whole.n_envs, callback=Saved(file))
    model = TRPO.load(file, env=made(5))
    assert model.restore_environments() == ""
    model.learn(3 * 32 * whole.n_envs, reset_num_timesteps=False)
    assert equal_states(model.get_parameters(), whole.get_parameters())
    assert model.num_timesteps == whole.num_timesteps


def damaged(name, value):
    return lambda saved: saved.update({name: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (damaged("last_obs", np.zeros((2, 3))), "last observations are none of these environments"),
        (damaged("last_obs", np.array(["a", "b"])), "last observations are none"),
        (damaged("last_obs", {"a": np.zeros(2)}), "last observations are none"),
        (damaged("last_episode_starts", [False]), "which environments begin an episode"),
        (damaged("state", None), "state of the environments cannot be had"),
        (lambda saved: saved.pop("last_obs"), "state of its environments, but not 'last_obs'"),
        (lambda saved: saved.pop("state"), "without the state of its environments"),
    ],
)
def test_what_does_not_fit_is_a_reason_and_changes_nothing(change, said, file):
    model = TRPO("MlpPolicy", cartpoles(1), n_steps=32, seed=0)
    model.learn(128, callback=Saved(file))
    loaded = TRPO.load(file, env=cartpoles(5))
    loaded._saved_environments = dict(loaded._saved_environments)
    change(loaded._saved_environments)
    single = loaded.env.unwrapped.envs[0].unwrapped
    assert said in loaded.restore_environments()
    assert loaded._last_obs is None
    assert single.state is None
    loaded.learn(64)  # with new episodes


def test_an_agent_that_was_never_trained_has_nothing_to_go_on_from(file):
    TRPO("MlpPolicy", cartpoles(1), n_steps=32).save(file, include=["environments"])
    assert TRPO.load(file, env=cartpoles(1)).restore_environments() == (
        "the agent had not begun to train"
    )
    assert TRPO.load(file).restore_environments() == "the agent had not begun to train"
