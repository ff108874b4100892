"""REINFORCE: its gradient against closed forms, its baselines, and its checkpoints."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents import A2C, REINFORCE
from agents.arguments import BatchOfOneError
from agents.rollout import batch
from npg.errors import CheckpointError, ConfigurationError
from npg.optim import FunctionOptimizer, names, registry
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    VECTOR,
    Script,
    Toy,
    finite,
    parameters,
    same,
    small,
    vector_env,
)
from tests.agents.peers import oracle_of, train_both
from tests.agents.rollouts import collect

every_baseline = pytest.mark.parametrize("baseline", ["value", "mean", "none"])


class Bandit(gym.Env):
    """Episodes of one step, in one state.

    Args:
        action_space: What can be done.
        reward: Of an action.
    """

    observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, action_space, reward) -> None:
        self.action_space, self.reward = action_space, reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), float(self.reward(action)), True, False, {}


def bandit_gradients(action_space, reward, baseline, rollouts: int = 60) -> list[torch.Tensor]:
    """Gradients of a linear policy with all of the weight in its bias, one per rollout of 64."""
    env = vector_env(lambda: Bandit(action_space, reward), 4)
    model = REINFORCE(
        "MlpPolicy",
        env,
        n_steps=16,
        learning_rate=0.0,
        baseline=baseline,
        max_grad_norm=math.inf,
        policy_kwargs={"net_arch": [], "optimizer_class": torch.optim.SGD},
        seed=0,
        device="cpu",
    )
    policy = model.policy
    with torch.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.copy_(torch.linspace(-0.5, 0.7, len(policy.action_net.bias)))
        policy.value_net.bias.fill_(1.5)  # a baseline that is not the mean
    gradients = []
    for _ in range(rollouts):
        collect(model)
        model.train()
        trained = [policy.action_net.bias.grad]
        if hasattr(policy, "log_std"):
            trained.append(policy.log_std.grad)
        gradients.append(torch.cat(trained).clone())
    return gradients


def assert_mean_is(gradients, expected) -> None:
    """Within four standard errors, which are small beside what is expected."""
    stacked = torch.stack(gradients).double()
    error = stacked.std(0) / math.sqrt(len(stacked))
    expected = torch.as_tensor(expected)
    assert error.max() < 0.2 * expected.abs().max()
    assert ((stacked.mean(0) - expected).abs() < 4 * error).all()


@every_baseline
def test_the_gradient_of_a_bandit_is_unbiased(baseline) -> None:
    # J = Σ p_a r_a, so that ∂J/∂z_k = p_k (r_k − J); the loss is −J.
    rewards = np.array([1.0, 3.0, 2.0])
    gradients = bandit_gradients(spaces.Discrete(3), lambda a: rewards[a], baseline)
    p = np.exp(np.linspace(-0.5, 0.7, 3))
    p /= p.sum()
    assert_mean_is(gradients, -p * (rewards - p @ rewards))


@pytest.mark.uncounted  # hundreds of the same rollouts
@every_baseline
def test_the_gradient_of_a_gaussian_bandit_is_unbiased(baseline) -> None:
    # r = 3 − (a − 1)² gives J = 3 − (μ − 1)² − σ²: ∂J/∂μ = −2 (μ − 1), ∂J/∂log σ = −2 σ², σ = 1.
    # Actions are clipped to the box before the environment sees them: it is a wide one.
    space = spaces.Box(-50, 50, (1,), np.float32)
    gradients = bandit_gradients(space, lambda a: 3 - (a[0] - 1) ** 2, baseline, rollouts=400)
    mean = -0.5
    assert_mean_is(gradients, [2 * (mean - 1), 2.0])


def test_a_baseline_takes_noise_out() -> None:
    rewards = np.array([11.0, 13.0, 12.0])
    spread = {
        baseline: float(
            torch.stack(bandit_gradients(spaces.Discrete(3), lambda a: rewards[a], baseline))
            .var(0)
            .sum()
        )
        for baseline in ("mean", "none")
    }
    assert spread["mean"] < 0.1 * spread["none"]


@every_baseline
@pytest.mark.parametrize("end", ["d", "t"])
def test_weights_by_hand(baseline, end) -> None:
    # Two episodes of rewards 1 and 4, γ = ½: returns 4 and 1 + ½ · 4 = 3. Where a time limit cuts
    # them, ½ V of the last observation comes to the 4, and half of that to the 3. The mean of the
    # others is 11/3 for a 3, and 10/3 for a 4.
    env = vector_env(lambda: Script([1.0, 4.0], f"-{end}"))
    model = REINFORCE(
        "MlpPolicy", env, n_steps=4, gamma=0.5, baseline=baseline, seed=0, device="cpu"
    )
    collect(model)
    samples = batch(model.rollout_buffer, model.action_space, model.device)
    rest = torch.zeros(2)
    if end == "t":
        last = torch.tensor([[0.1, 0.2], [0.2, 0.2]])  # episode and step, as Script shows them
        rest = 0.5 * model.policy.predict_values(last).detach().flatten()
    returns = torch.stack([3 + rest / 2, 4 + rest], dim=1).flatten()
    torch.testing.assert_close(samples.returns, returns)
    weights = model._advantages(samples)
    if baseline == "value":
        torch.testing.assert_close(weights, returns - samples.values)
    elif baseline == "none":
        torch.testing.assert_close(weights, returns)
    elif end == "d":
        torch.testing.assert_close(weights, torch.tensor([-2 / 3, 2 / 3, -2 / 3, 2 / 3]))


def test_the_mean_is_that_of_the_others() -> None:
    model = small(REINFORCE, vector_env(Toy), baseline="mean")
    collect(model)
    samples = batch(model.rollout_buffer, model.action_space, model.device)
    returns = samples.returns.double().numpy()
    others = [np.delete(returns, i).mean() for i in range(len(returns))]
    np.testing.assert_allclose(model._advantages(samples).numpy(), returns - others, rtol=1e-4)


@pytest.mark.parametrize("actions", ACTIONS)
def test_with_the_value_for_a_baseline_it_is_a2c_on_whole_returns(actions) -> None:
    settings = {"n_steps": 32, "learning_rate": 1e-3, "ent_coef": 0.01}
    env = vector_env(lambda: Toy(VECTOR, ACTIONS[actions]), 2)
    model = REINFORCE("MlpPolicy", env, seed=0, device="cpu", **settings)
    train_both(model, oracle_of(model, "A2C", gae_lambda=1.0, use_rms_prop=False, **settings))


# ------------------------------------------------------------------------- arguments, checkpoints


@pytest.mark.parametrize(
    "settings",
    [
        {"baseline": "critic"},
        {"baseline": None},
        {"n_steps": 0},
        {"vf_coef": -1},
        {"optimizer": "x"},
    ],
    ids=str,
)
def test_impossible_arguments_are_refused_by_name(settings) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        small(REINFORCE, vector_env(Toy), **settings)


@pytest.mark.parametrize("settings", [{"baseline": "mean"}, {"normalize_advantage": True}])
def test_one_sample_has_no_others(settings) -> None:
    with pytest.raises(BatchOfOneError, match="n_envs"):
        small(REINFORCE, vector_env(Toy), n_steps=1, **settings)
    assert finite(small(REINFORCE, vector_env(Toy), n_steps=1, baseline="none").learn(5))


@pytest.mark.parametrize("name", names())
def test_every_optimizer_trains_or_is_refused_with_a_remedy(name) -> None:
    if issubclass(registry._class(name), FunctionOptimizer) or name == "sophia-g":
        with pytest.raises(ConfigurationError, match=f"optimizer='{name}'.*optimizer=None"):
            small(REINFORCE, vector_env(Toy), optimizer=name)
        return
    model = small(REINFORCE, vector_env(lambda: Toy(VECTOR, BOX)), optimizer=name)
    before = parameters(model)
    model.learn(128)
    assert not same(before, parameters(model))
    assert finite(model)


def test_checkpoints_keep_the_baseline_and_are_told_from_others(tmp_path) -> None:
    small(REINFORCE, vector_env(Toy), baseline="mean").save(tmp_path / "model")
    assert REINFORCE.load(tmp_path / "model").baseline == "mean"
    small(A2C, vector_env(Toy)).save(tmp_path / "a2c")
    for agent, name in ((A2C, "model"), (REINFORCE, "a2c")):
        with pytest.raises(CheckpointError, match="another algorithm"):
            agent.load(tmp_path / name)
