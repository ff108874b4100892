"""The NumPy twin of a policy: the same numbers, also where parameters change under it."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from agents import TRPO, acting
from agents.acting import mirrored_layers
from agents.mirrors import Mirror
from agents.rollout import batch
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    DICTIONARY,
    DISCRETE,
    VECTOR,
    Toy,
    agent_of,
    small,
    vector_env,
)
from tests.agents.rollouts import collect

ARCHITECTURES = {
    "tanh": {"net_arch": [16, 8]},
    "relu": {"net_arch": {"pi": [5, 7, 6], "vf": [4]}, "activation_fn": nn.ReLU},
    "linear": {"net_arch": []},
}


def mirror_of(model: TRPO, envs: int = 4, steps: int = 3) -> Mirror:
    layers = mirrored_layers(model.policy, model.observation_space)
    assert layers is not None
    return acting.mirror_of(model.policy, layers, envs, steps)


def output_of(model: TRPO, observations) -> np.ndarray:
    """Mean or logits of the policy's own distribution [B, K], unnormalised."""
    tensors, _ = model.policy.obs_to_tensor(observations)
    with torch.no_grad():
        inner = model.policy.get_distribution(tensors).distribution
    if isinstance(inner, list):
        return torch.cat([part.logits for part in inner], dim=1).numpy()
    return (inner.mean if hasattr(inner, "loc") else inner.logits).numpy()


def normalised(output: np.ndarray, model: TRPO) -> np.ndarray:
    """Categorical logits count up to a constant, which torch removes."""
    space = model.action_space
    sizes = [space.n] if isinstance(space, spaces.Discrete) else getattr(space, "nvec", [])
    if not len(sizes):
        return output
    pieces = np.split(output, np.cumsum(sizes)[:-1], axis=1)
    return np.concatenate([p - np.logaddexp.reduce(p, axis=1)[:, None] for p in pieces], axis=1)


def batch_of(space: spaces.Space, rows: int):
    rng = np.random.default_rng(0)
    if isinstance(space, spaces.Dict):
        return {
            key: rng.normal(size=(rows, *inner.shape)).astype(inner.dtype)
            for key, inner in space.spaces.items()
        }
    return rng.normal(size=(rows, *space.shape)).astype(space.dtype)


# --------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "observations",
    [VECTOR, DICTIONARY, spaces.Box(-9, 9, (2, 3), np.float64)],
    ids=["vector", "dict", "matrix of doubles"],
)
@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("envs", [1, 4])
def test_output_is_the_policys(actions: str, observations, architecture: str, envs: int) -> None:
    model = agent_of(observations, ACTIONS[actions], **ARCHITECTURES[architecture])
    mirror = mirror_of(model, envs)
    batch = batch_of(observations, envs)
    mirror.noise[:] = 0  # what is left in `last` is the network's output
    mirror.read()
    mirror.sample(0, rows_of(batch))
    ours, theirs = mirror.last, output_of(model, batch)
    assert np.ptp(theirs) > 0.01
    np.testing.assert_allclose(normalised(ours, model), theirs, atol=1e-6, rtol=1e-5)


def rows_of(batch) -> np.ndarray:
    """Flat single-precision rows."""
    columns = batch.values() if isinstance(batch, dict) else [batch]
    flat = [np.asarray(c, dtype=np.float32).reshape(len(c), -1) for c in columns]
    return np.concatenate(flat, axis=1)


MANY = spaces.Discrete(40)  # too many for the noise to go through the last layer


@pytest.mark.parametrize("actions", [DISCRETE, MANY, BOX], ids=["few", "many", "box"])
@pytest.mark.parametrize("envs", [1, 2])
def test_environments_may_observe_in_double_precision(actions, envs: int) -> None:
    space = spaces.Box(-9, 9, (3,), np.float64)
    model = small(TRPO, vector_env(lambda: Toy(space, actions), envs))
    assert collect(model)
    data = batch(model.rollout_buffer, actions, model.device)
    with torch.no_grad():
        expected = model.policy.get_distribution(data.observations).log_prob(data.actions)
    torch.testing.assert_close(data.log_probs, expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("actions", [*ACTIONS.values(), MANY], ids=[*ACTIONS, "many"])
@pytest.mark.parametrize("envs", [1, 4])
def test_every_step_adds_its_own_noise(actions, architecture: str, envs: int) -> None:
    model = agent_of(VECTOR, actions, **ARCHITECTURES[architecture])
    mirror, batch = mirror_of(model, envs), batch_of(VECTOR, envs)
    scale = model.policy.log_std.detach().exp().numpy() if hasattr(model.policy, "log_std") else 1
    for t in (2, 0, 1):
        mirror.sample(t, rows_of(batch))
        found = normalised(mirror.last - scale * mirror.noise[t], model)
        np.testing.assert_allclose(found, output_of(model, batch), atol=2e-5, rtol=1e-4)
    assert len(np.unique(mirror.noise)) > 0.9 * mirror.noise.size


def test_output_does_not_change_the_observations() -> None:
    model = agent_of(**ARCHITECTURES["linear"])
    batch = batch_of(VECTOR, 4)
    before = batch.copy()
    mirror = mirror_of(model)
    mirror.sample(0, batch)
    np.testing.assert_array_equal(batch, before)


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("envs", [1, 4])
def test_actions_have_the_space_s_shape_and_are_new_arrays(actions: str, envs: int) -> None:
    space = ACTIONS[actions]
    model = agent_of(VECTOR, space)
    mirror = mirror_of(model, envs)
    batch = batch_of(VECTOR, envs)
    first = mirror.sample(0, batch)
    kept = first.copy()
    mirror.sample(1, batch)
    np.testing.assert_array_equal(first, kept)
    assert first.shape == (envs, *space.shape)
    if not isinstance(space, spaces.Box):
        assert all(space.contains(action.astype(space.dtype)) for action in first)


# ------------------------------------------------------------------------------- the distribution
#
# All draws of one state are independent; each test has a false-alarm probability below 1e-6, and
# the seed is fixed anyway.

DRAWS = 20_000


def draws_of(actions, **policy_kwargs) -> tuple[np.ndarray, np.ndarray, TRPO]:
    model = agent_of(VECTOR, actions, **policy_kwargs)
    mirror = mirror_of(model, envs=DRAWS, steps=1)
    one = batch_of(VECTOR, 1)
    return mirror.sample(0, one.repeat(DRAWS, axis=0)), output_of(model, one), model


def agrees(samples: np.ndarray, probabilities: np.ndarray) -> bool:
    probabilities = probabilities.astype(np.float64)
    counts = np.bincount(samples, minlength=len(probabilities))
    return stats.chisquare(counts, DRAWS * probabilities / probabilities.sum()).pvalue > 1e-6


def test_categorical_actions_follow_their_probabilities() -> None:
    samples, logits, _ = draws_of(DISCRETE)
    assert samples.dtype == np.int64
    assert agrees(samples, np.exp(logits[0]))
    assert not agrees(samples, np.full(3, 1 / 3))


def test_multi_categorical_actions_follow_their_probabilities_independently() -> None:
    samples, logits, _ = draws_of(ACTIONS["multi-discrete"])
    pieces = np.split(np.exp(logits[0]), [3, 5])
    for column, probabilities in zip(samples.T, pieces, strict=True):
        assert agrees(column, probabilities)
    joint = np.einsum("i,j,k->ijk", *pieces).ravel()
    assert agrees(np.ravel_multi_index(tuple(samples.T), (3, 2, 4)), joint)


def test_binary_actions_follow_their_probabilities_independently() -> None:
    samples, logits, _ = draws_of(ACTIONS["multi-binary"])
    on = 1 / (1 + np.exp(-logits[0]))
    pairs = np.stack([1 - on, on], axis=1)
    joint = np.einsum("i,j,k->ijk", *pairs).ravel()
    assert agrees(np.ravel_multi_index(tuple(samples.T.astype(int)), (2, 2, 2)), joint)


@pytest.mark.parametrize("actions", [BOX, ACTIONS["matrix"]], ids=["vector", "matrix"])
def test_gaussian_actions_have_mean_and_deviation_of_the_policy(actions) -> None:
    samples, mean, model = draws_of(actions)
    deviation = model.policy.log_std.detach().exp().numpy()
    assert np.ptp(deviation) > 0.05  # the coordinates can be told apart
    standard = (samples.reshape(DRAWS, -1) - mean[0]) / deviation
    for column in standard.T:
        assert stats.kstest(column, "norm").pvalue > 1e-6
    correlation = np.corrcoef(standard.T) - np.eye(len(deviation))
    assert np.abs(correlation).max() < 5 / np.sqrt(DRAWS)


def test_steps_and_environments_draw_independently() -> None:
    model = agent_of(VECTOR, BOX)
    mirror = mirror_of(model, envs=4, steps=500)
    noise = mirror.noise.reshape(500, 8)
    assert np.abs(np.corrcoef(noise.T) - np.eye(8)).max() < 0.25  # 5.6 deviations of 1/√500
    assert abs(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1]) < 0.09
    assert len(np.unique(noise)) == noise.size


def test_noise_comes_from_torchs_generator() -> None:
    model = agent_of(VECTOR, BOX)
    torch.manual_seed(3)
    first = mirror_of(model).noise
    torch.manual_seed(3)
    np.testing.assert_array_equal(first, mirror_of(model).noise)
    assert not np.array_equal(first, mirror_of(model).noise)


# ------------------------------------------------------------------------- parameters that change


def in_place(policy, values) -> None:
    with torch.no_grad():
        policy.action_net.bias.copy_(values)


def by_data(policy, values) -> None:
    policy.action_net.bias.data = values.clone()


def by_state(policy, values) -> None:
    policy.load_state_dict({**policy.state_dict(), "action_net.bias": values})


def by_vector(policy, values) -> None:
    vector = parameters_to_vector([policy.action_net.weight, policy.action_net.bias]).detach()
    vector[-3:] = values
    vector_to_parameters(vector, [policy.action_net.weight, policy.action_net.bias])


def by_parameter(policy, values) -> None:
    policy.action_net.bias = nn.Parameter(values.clone())


class Switch(BaseCallback):
    """Makes action 2 all but certain after 20 steps, and action 0 after 40."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def _on_step(self) -> bool:
        if self.n_calls == 20:
            self.change(self.model.policy, torch.tensor([-30.0, 0.0, 30.0]))
        if self.n_calls == 40:
            self.change(self.model.policy, torch.tensor([30.0, 0.0, -30.0]))
        return True


@pytest.mark.parametrize("change", [in_place, by_data, by_state, by_vector, by_parameter])
def test_changes_in_the_middle_of_a_rollout_are_followed(change) -> None:
    model = small(TRPO, vector_env(Toy, 2))
    assert mirrored_layers(model.policy, VECTOR) is not None
    callback = Switch(change)
    _, callbacks = model._setup_learn(128, callback)
    model.collect_rollouts(model.env, callbacks, model.rollout_buffer, 64)
    actions = model.rollout_buffer.actions[..., 0]
    assert len(np.unique(actions[:20])) == 3
    assert (actions[20:40] == 2).all()
    assert (actions[40:] == 0).all()


def test_probabilities_are_those_of_the_policy_that_acted() -> None:
    model = small(TRPO, vector_env(Toy, 2))
    _, callbacks = model._setup_learn(128, Switch(in_place))
    model.collect_rollouts(model.env, callbacks, model.rollout_buffer, 64)
    # About log(1/3) before the first change, about 0 after it.
    assert (np.abs(model.rollout_buffer.log_probs[:20] + np.log(3)) < 0.3).all()
    assert (np.abs(model.rollout_buffer.log_probs[20:]) < 1e-3).all()
