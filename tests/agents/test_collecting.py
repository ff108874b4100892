"""What rollouts hold: the numbers of Stable-Baselines3's own loop, ends of episodes included."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from agents import TRPO, predictions
from agents.acting import mirrored_layers
from agents.rollout import Rollout
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    DICTIONARY,
    DISCRETE,
    IMAGE,
    VECTOR,
    BatchNorm,
    Script,
    SharedMlp,
    SmallCnn,
    Toy,
    small,
    vector_env,
)
from tests.agents.rollouts import COLUMNS, Silent, collect, start
from tests.pairs import pairs


def sb3_rollout(model, env, actions: np.ndarray | None) -> RolloutBuffer:
    """Stable-Baselines3's loop with the same policy, and the given actions [T, B, A] if any."""
    kind = DictRolloutBuffer if isinstance(env.observation_space, spaces.Dict) else RolloutBuffer
    buffer = kind(
        model.n_steps,
        env.observation_space,
        env.action_space,
        "cpu",
        gae_lambda=model.gae_lambda,
        gamma=model.gamma,
        n_envs=env.num_envs,
    )
    policy, step = model.policy, iter(range(model.n_steps))

    def replay(observations):
        row = torch.as_tensor(actions[next(step)])
        row = row[:, 0] if isinstance(env.action_space, spaces.Discrete) else row
        values, log_probs, _ = policy.evaluate_actions(observations, row.float())
        return row.reshape(-1, *env.action_space.shape), values, log_probs

    if actions is not None:
        policy.forward = replay
    try:
        callback = Silent()
        callback.init_callback(model)
        OnPolicyAlgorithm.collect_rollouts(model, env, callback, buffer, model.n_steps)
    finally:
        policy.__dict__.pop("forward", None)
    return buffer


def assert_same_rollout(ours: Rollout, theirs: RolloutBuffer, gamma_values: bool) -> None:
    for name in COLUMNS:
        np.testing.assert_allclose(
            getattr(ours, name), getattr(theirs, name), atol=2e-6, rtol=2e-6, err_msg=name
        )
    np.testing.assert_array_equal(ours.actions, theirs.actions)
    mine, others = ours.observations, theirs.observations
    pairs = [(mine[k], others[k]) for k in mine] if isinstance(mine, dict) else [(mine, others)]
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-7)
    cut = ours.bootstrap != 0
    assert cut.any() == gamma_values
    np.testing.assert_array_equal(ours.rewards[~cut], theirs.rewards[~cut])
    edited = ours.rewards[cut] + 0.99 * ours.bootstrap[cut]  # what SB3 does to the reward
    np.testing.assert_allclose(edited, theirs.rewards[cut], rtol=1e-5)


@pytest.mark.parametrize(
    *pairs(
        observations={"vector": VECTOR, "dict": DICTIONARY}, actions=tuple(ACTIONS), count=[1, 3]
    )
)
def test_mirrored_rollouts_are_those_of_sb3(observations, actions: str, count: int) -> None:
    env = vector_env(lambda: Toy(observations, ACTIONS[actions]), count)
    policy = "MlpPolicy" if observations is VECTOR else "MultiInputPolicy"
    model = small(TRPO, env, policy, policy_kwargs={"ortho_init": False})
    assert mirrored_layers(model.policy, model.observation_space) is not None
    model._setup_learn(0)
    start(model, env)
    assert collect(model)
    ours = model.rollout_buffer
    assert ours.full
    assert ours.pos == 64
    start(model, env)
    theirs = sb3_rollout(model, env, ours.actions)
    assert_same_rollout(ours, theirs, gamma_values=True)


@pytest.mark.parametrize(
    ("observations", "actions", "policy", "policy_kwargs", "settings"),
    [
        (VECTOR, BOX, "MlpPolicy", {"activation_fn": nn.ELU}, {"use_sde": True}),
        (
            VECTOR,
            BOX,
            "MlpPolicy",
            {"activation_fn": nn.ELU},
            {"use_sde": True, "sde_sample_freq": 5},
        ),
        (IMAGE, DISCRETE, "CnnPolicy", {"features_extractor_class": SmallCnn}, {}),
        (VECTOR, BOX, "MlpPolicy", {"features_extractor_class": SharedMlp}, {}),
        (VECTOR, BOX, "MlpPolicy", {"features_extractor_class": BatchNorm}, {}),
        (spaces.Discrete(5), DISCRETE, "MlpPolicy", {}, {}),
        (
            VECTOR,
            BOX,
            "MlpPolicy",
            {"activation_fn": nn.LeakyReLU, "squash_output": True, "log_std_init": -1.0},
            {"use_sde": True},
        ),
    ],
    ids=["gsde", "gsde resampled", "cnn", "features", "batch norm", "discrete", "squashed"],
)
def test_other_rollouts_are_those_of_sb3_draw_for_draw(
    observations, actions, policy, policy_kwargs, settings
) -> None:
    env = vector_env(lambda: Toy(observations, actions), 2)
    model = small(TRPO, env, policy, policy_kwargs=policy_kwargs, **settings)
    assert mirrored_layers(model.policy, model.observation_space) is None
    model._setup_learn(0)
    start(model, env)
    torch.manual_seed(3)
    collect(model)
    start(model, env)
    torch.manual_seed(3)
    assert_same_rollout(model.rollout_buffer, sb3_rollout(model, env, None), gamma_values=True)


@pytest.mark.parametrize("size", [300, 10_000])
def test_evaluation_in_chunks_gives_the_same(monkeypatch, size: int) -> None:
    rollouts = []
    for bytes_per_chunk in (2**30, size):  # 300 bytes hold 25 vectors of 3 floats
        monkeypatch.setattr(predictions, "CHUNK_BYTES", bytes_per_chunk)
        model = small(TRPO, vector_env(Toy, 2))
        collect(model)
        rollouts.append(model.rollout_buffer)
    for name in COLUMNS:
        np.testing.assert_allclose(
            getattr(rollouts[0], name), getattr(rollouts[1], name), atol=1e-6
        )


# ---------------------------------------------------------------------------- ends of episodes


def linear_value(model, weights: list[float], bias: float) -> None:
    with torch.no_grad():
        model.policy.value_net.weight.copy_(torch.tensor([weights]))
        model.policy.value_net.bias.fill_(bias)


def test_time_limits_bootstrap_from_the_terminal_observation_by_hand() -> None:
    # Observations are (episode, step)/10 and V(o) = 10·o₀ + 20·o₁ + 1 = episode + 2·step + 1.
    # γ = 0.5, λ = 0. Rewards 1, 2, 3, ends at the third step:
    #   t  episode step  V(s)  reward  V(next)                A = r + 0.5·V' − V
    #   0     1     0     2      1     4                      1 + 2 − 2      =  1
    #   1     1     1     4      2     6                      2 + 3 − 4      =  1
    #   2     1     2     6      3     cut: V(1, 3) = 8       3 + 4 − 6      =  1
    #                                  terminated: 0          3 + 0 − 6      = −3
    #   3     2     0     3      1     5                      1 + 2.5 − 3    =  0.5
    #   4     2     1     5      2     last: V(2, 2) = 7      2 + 3.5 − 5    =  0.5
    for end, third in (("t", 1.0), ("d", -3.0)):
        env = vector_env(lambda end=end: Script([1.0, 2.0, 3.0], "--" + end))
        settings = {"n_steps": 5, "batch_size": 5, "gamma": 0.5, "gae_lambda": 0.0}
        model = small(TRPO, env, policy_kwargs={"net_arch": []}, **settings)
        linear_value(model, [10.0, 20.0], 1.0)
        env.envs[0].episodes = 0
        collect(model)
        buffer = model.rollout_buffer
        np.testing.assert_allclose(buffer.values[:, 0], [2, 4, 6, 3, 5], atol=1e-5)
        np.testing.assert_allclose(buffer.advantages[:, 0], [1, 1, third, 0.5, 0.5], atol=1e-5)
        np.testing.assert_allclose(buffer.returns, buffer.advantages + buffer.values)
        np.testing.assert_array_equal(buffer.rewards[:, 0], [1, 2, 3, 1, 2])  # not edited
        np.testing.assert_array_equal(buffer.episode_starts[:, 0], [1, 0, 0, 1, 0])
        np.testing.assert_array_equal(model._last_episode_starts, [False])


def test_a_rollout_that_ends_with_an_episode() -> None:
    # As above, cut after the last step of the rollout: the value of the NEXT episode's first
    # observation (3) must not be used, that of the terminal observation (8) must.
    env = vector_env(lambda: Script([1.0, 2.0, 3.0], "--t"))
    settings = {"n_steps": 3, "batch_size": 3, "gamma": 0.5, "gae_lambda": 0.0}
    model = small(TRPO, env, policy_kwargs={"net_arch": []}, **settings)
    linear_value(model, [10.0, 20.0], 1.0)
    env.envs[0].episodes = 0
    collect(model)
    np.testing.assert_allclose(model.rollout_buffer.advantages[:, 0], [1, 1, 1], atol=1e-5)
    np.testing.assert_array_equal(model._last_episode_starts, [True])
    collect(model)
    np.testing.assert_array_equal(model.rollout_buffer.episode_starts[:, 0], [1, 0, 0])


def test_a_bootstrap_does_not_survive_into_the_next_rollout() -> None:
    env = vector_env(lambda: Toy(limit=5, death=0.0))
    model = small(TRPO, env)
    collect(model)
    assert model.rollout_buffer.bootstrap.any()
    env.envs[0].limit = 1000
    env.envs[0].steps = 0
    collect(model)
    assert not model.rollout_buffer.bootstrap.any()


def test_environments_keep_apart() -> None:
    """One is cut where the other goes on."""
    scripts = iter([Script([1.0] * 4, "-t--"), Script([2.0] * 9, "-" * 9)])
    model = small(TRPO, vector_env(lambda: next(scripts), 2), n_steps=4, batch_size=8)
    collect(model)
    np.testing.assert_array_equal(model.rollout_buffer.rewards, [[1, 2]] * 4)
    np.testing.assert_array_equal(
        model.rollout_buffer.episode_starts, [[1, 1], [0, 0], [1, 0], [0, 0]]
    )
    assert model.rollout_buffer.bootstrap[1, 0] != 0
    assert np.count_nonzero(model.rollout_buffer.bootstrap) == 2 - 1 + (
        model.rollout_buffer.bootstrap[3, 0] != 0
    )


# ------------------------------------------------------------------------------------- normalisers


@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_what_is_stored_is_what_the_policy_acted_on_normalised_once(kind: str) -> None:
    observations = VECTOR if kind == "vector" else DICTIONARY

    class Check(BaseCallback):
        def _on_step(self) -> bool:
            env, new = self.model.env, self.locals["new_obs"]
            expected = env.normalize_obs(env.get_original_obs())
            for key in new if isinstance(new, dict) else [...]:
                np.testing.assert_allclose(new[key], expected[key], rtol=1e-6)
            self.given.append(new)
            self.rewards.append(self.locals["rewards"])
            return True

    check = Check()
    env = VecNormalize(vector_env(lambda: Toy(observations, BOX), 2), clip_obs=2.0)
    model = small(TRPO, env, "MlpPolicy" if kind == "vector" else "MultiInputPolicy")
    model._setup_learn(0)
    check.given, check.rewards = [model._last_obs], []
    collect(model, check)
    stored = model.rollout_buffer.observations
    for key in stored if kind == "dict" else [...]:
        np.testing.assert_array_equal(stored[key], np.stack([g[key] for g in check.given[:-1]]))
        assert np.abs(stored[key]).max() == 2.0
    np.testing.assert_array_equal(model.rollout_buffer.rewards, np.stack(check.rewards))


def test_terminal_observations_are_normalised_before_their_value_is_taken() -> None:
    env = VecNormalize(vector_env(lambda: Toy(limit=6, death=0.0)), norm_reward=False)
    model = small(TRPO, env)
    terminals = []

    class Terminal(BaseCallback):
        def _on_step(self) -> bool:
            info = self.locals["infos"][0]
            if self.locals["dones"][0]:
                terminals.append((self.n_calls - 1, info["terminal_observation"]))
            return True

    collect(model, Terminal())
    assert len(terminals) == 10
    for t, terminal in terminals:
        value = model.policy.predict_values(torch.tensor(terminal)[None]).item()
        np.testing.assert_allclose(model.rollout_buffer.bootstrap[t, 0], value, rtol=1e-4)
