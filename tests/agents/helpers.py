"""Small environments, policies and oracles that the tests of the agents share."""

import copy
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common import policies as sb3_policies
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from agents import A2C, ACKTR, ES, NPG, PPO, REINFORCE, TRPO
from agents.on_policy import OnPolicy

AGENTS = (TRPO, NPG)
both_agents = pytest.mark.parametrize("agent", AGENTS)  # those of the natural gradient
FIRST_ORDER = (A2C, PPO, REINFORCE)  # those that take any gradient optimizer
ACTOR_CRITICS = (ACKTR, *FIRST_ORDER)  # those with one loss for actor and critic
every_agent = pytest.mark.parametrize("agent", [*AGENTS, *ACTOR_CRITICS])
# What holds of any agent, whether its rollouts have a fixed number of steps or not.
any_agent = pytest.mark.parametrize("agent", [*AGENTS, *ACTOR_CRITICS, ES])
every_variant = pytest.mark.parametrize(
    ("agent", "settings"),
    [
        *(
            pytest.param(agent, {"critic": critic}, id=f"{agent.__name__}-{critic}")
            for agent in AGENTS
            for critic in ("adam", "gauss-newton")
        ),
        *(pytest.param(agent, {}, id=agent.__name__) for agent in ACTOR_CRITICS),
    ],
)
both_critics = pytest.mark.parametrize("critic", ["adam", "gauss-newton"])

VECTOR = spaces.Box(-10.0, 10.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 12, 12), np.uint8)
DICTIONARY = spaces.Dict(
    {"velocity": spaces.Box(-10, 10, (2,), np.float32), "angle": spaces.Box(-4, 4, (3,))}
)
DISCRETE = spaces.Discrete(3)
BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
MATRIX = spaces.Box(-1.0, 1.0, (2, 2), np.float32)
MULTI_DISCRETE = spaces.MultiDiscrete([3, 2, 4])
MULTI_BINARY = spaces.MultiBinary(3)
ACTIONS = {
    "discrete": DISCRETE,
    "box": BOX,
    "matrix": MATRIX,
    "multi-discrete": MULTI_DISCRETE,
    "multi-binary": MULTI_BINARY,
}


class Toy(gym.Env):
    """Random observations of any space, and a reward for actions that follow them.

    Args:
        observation_space: Box (vectors or images), Dict of Box, or Discrete.
        action_space: Any supported one.
        limit: Steps until truncation.
        death: Probability of termination per step.
        reward: Replaces the reward: step number → reward.
    """

    def __init__(
        self,
        observation_space: spaces.Space = VECTOR,
        action_space: spaces.Space = DISCRETE,
        limit: int = 9,
        death: float = 0.05,
        reward: Callable[[int], float] | None = None,
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.limit, self.death, self.reward = limit, death, reward
        self.total = 0

    def _observe(self) -> Any:
        def draw(space: spaces.Space) -> Any:
            if space.dtype == np.uint8:
                return self.np_random.integers(0, 256, space.shape, dtype=np.uint8)
            if isinstance(space, spaces.Discrete):
                return self.np_random.integers(space.n)
            return self.np_random.normal(size=space.shape).astype(space.dtype)

        space = self.observation_space
        if isinstance(space, spaces.Dict):
            observation = {key: draw(inner) for key, inner in space.spaces.items()}
            first = next(iter(observation.values()))
        else:
            observation = first = draw(space)
        self.hint = float(np.tanh(np.asarray(first, np.float64).mean()))
        return observation

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.total += 1
        reward = -float(np.mean((np.asarray(action, np.float64) - self.hint) ** 2))
        if self.reward is not None:
            reward = self.reward(self.total)
        dead = bool(self.np_random.random() < self.death)
        return self._observe(), reward, dead, self.steps >= self.limit, {}


class Shifted(Toy):
    """Observations far from mean 0 and variance 1, where BatchNorm's statistics begin."""

    def _observe(self) -> Any:
        return super()._observe() * 3 + 1


class Script(gym.Env):
    """A fixed sequence of rewards and ends; an observation tells episode and step.

    Args:
        rewards: Per step.
        ends: "-" goes on, "d" terminates, "t" truncates, per step.
        action_space: Whatever; the actions do nothing.
    """

    observation_space = spaces.Box(-100, 100, (2,), np.float32)

    def __init__(
        self, rewards: Sequence[float], ends: str, action_space: spaces.Space = DISCRETE
    ) -> None:
        self.rewards, self.ends, self.action_space = rewards, ends, action_space
        self.steps = self.episodes = 0

    def _now(self) -> np.ndarray:
        return np.array([self.episodes / 10, self.steps / 10], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.episodes, self.steps = self.episodes + 1, 0
        return self._now(), {}

    def step(self, action: Any) -> Any:
        reward, end = self.rewards[self.steps], self.ends[self.steps]
        self.steps += 1
        return self._now(), reward, end == "d", end == "t", {}


class SharedMlp(BaseFeaturesExtractor):
    """One layer that actor and critic share."""

    def __init__(self, observation_space: spaces.Space, features_dim: int = 8) -> None:
        super().__init__(observation_space, features_dim)
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(int(np.prod(observation_space.shape)), features_dim), nn.Tanh()
        )

    def forward(self, observations: Tensor) -> Tensor:
        return self.net(observations)


class SmallCnn(BaseFeaturesExtractor):
    """One convolution: images without NatureCNN's price."""

    def __init__(self, observation_space: spaces.Space, features_dim: int = 8) -> None:
        super().__init__(observation_space, features_dim)
        self.net = nn.Sequential(
            nn.Conv2d(observation_space.shape[0], 4, 4, stride=4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, features_dim),
            nn.ReLU(),
        )

    def forward(self, observations: Tensor) -> Tensor:
        return self.net(observations)


class BatchNorm(BaseFeaturesExtractor):
    """Normalises by batches: running statistics move in training mode."""

    def __init__(self, observation_space: spaces.Space, features_dim: int = 8) -> None:
        super().__init__(observation_space, features_dim)
        size = int(np.prod(observation_space.shape))
        self.net = nn.Sequential(
            nn.Flatten(), nn.BatchNorm1d(size), nn.Linear(size, features_dim), nn.ReLU()
        )

    def forward(self, observations: Tensor) -> Tensor:
        return self.net(observations)


def vector_env(make: Callable[[], gym.Env], count: int = 1) -> DummyVecEnv:
    return DummyVecEnv([make] * count)


def minibatches(agent: type[OnPolicy], size: int) -> dict[str, Any]:
    """The size of its minibatches, for an agent that takes any."""
    return {"batch_size": size} if agent in (*AGENTS, PPO) else {}


def short(agent: type[OnPolicy], **settings: Any) -> dict[str, Any]:
    """Arguments with which an update takes milliseconds, and what is given besides."""
    if agent is ES:
        return {"n_candidates": 8, "sigma": 0.1, "seed": 0, "device": "cpu"} | settings
    chosen: dict[str, Any] = {"n_steps": 64, "seed": 0, "device": "cpu"}
    chosen |= minibatches(agent, 32)
    if agent in AGENTS:
        chosen["n_critic_updates"] = 2
    if agent is PPO:
        chosen["n_epochs"] = 1
    if agent is TRPO:
        chosen["kl_reduction"] = "joint"
    return chosen | settings


def small(agent: type[OnPolicy], env: Any, policy: Any = "MlpPolicy", **settings: Any) -> OnPolicy:
    """An agent whose updates take milliseconds, silent about the joint KL."""
    chosen = short(agent, **settings)
    chosen["policy_kwargs"] = {"net_arch": [16], **settings.get("policy_kwargs", {})}
    return agent(policy, env, **chosen)


def agent_of(observations=VECTOR, actions=DISCRETE, policy=None, **policy_kwargs) -> TRPO:
    dictionary = isinstance(observations, spaces.Dict)
    policy = policy or ("MultiInputPolicy" if dictionary else "MlpPolicy")
    env = vector_env(lambda: Toy(observations, actions), 4)
    model = small(TRPO, env, policy, policy_kwargs={"ortho_init": False, **policy_kwargs})
    with torch.no_grad():  # not symmetric around zero, not one deviation
        for parameter in model.policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def parameters(agent: OnPolicy) -> list[Tensor]:
    """A copy of everything in the policy, buffers included."""
    return [t.detach().clone() for t in agent.policy.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two copies agree bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def finite(agent: OnPolicy) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in agent.policy.state_dict().values())


def stored_observations(agent: OnPolicy) -> Any:
    """All observations of the rollout as tensors [N, ...]."""

    def flat(column: np.ndarray) -> Tensor:
        return torch.as_tensor(column.reshape(-1, *column.shape[2:]).copy())

    observations = agent.rollout_buffer.observations
    if isinstance(observations, dict):
        return {key: flat(column) for key, column in observations.items()}
    return flat(observations)


def frozen(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """A deep copy of the policy in evaluation mode."""
    remembered = policy.action_dist
    policy.action_dist = copy.copy(remembered)
    for name, value in vars(remembered).items():  # what carries a graph cannot be copied
        if name == "distribution":
            setattr(policy.action_dist, name, None)
        elif isinstance(value, Tensor):
            setattr(policy.action_dist, name, value.detach())
        elif name == "weights_dist":
            setattr(policy.action_dist, name, None)
    try:
        twin = copy.deepcopy(policy)
    finally:
        policy.action_dist = remembered
    twin.set_training_mode(False)
    return twin


@contextmanager
def double_observations():
    """Makes policies preprocess observations in float64: SB3 casts them to float32."""
    original = sb3_policies.preprocess_obs

    def preprocess(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if isinstance(result, dict):
            return {key: value.double() for key, value in result.items()}
        return result.double()

    sb3_policies.preprocess_obs = preprocess
    try:
        yield
    finally:
        sb3_policies.preprocess_obs = original


def joint_kl64(old: ActorCriticPolicy, new: ActorCriticPolicy, observations: Any) -> float:
    """Mean over the states of KL(old ‖ new) of whole actions, by textbook formulas, in float64."""
    with torch.no_grad(), double_observations():
        p = copy.deepcopy(old).double().get_distribution(observations).distribution
        q = copy.deepcopy(new).double().get_distribution(observations).distribution
    if isinstance(p, list):
        total = sum(categorical_kl(a.logits, b.logits) for a, b in zip(p, q, strict=True))
    elif isinstance(p, torch.distributions.Categorical):
        total = categorical_kl(p.logits, q.logits)
    elif isinstance(p, torch.distributions.Bernoulli):
        total = sum(
            (s * (torch.log(s) - torch.log(t))).sum(1)
            for s, t in ((p.probs, q.probs), (1 - p.probs, 1 - q.probs))
        )
    else:
        ratio = (p.stddev / q.stddev) ** 2
        shift = ((p.mean - q.mean) / q.stddev) ** 2
        total = 0.5 * (ratio + shift - 1 - torch.log(ratio)).sum(1)
    assert total.dtype == torch.float64
    return float(total.mean())


def categorical_kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1)


def record_kl(agent: OnPolicy) -> list[float]:
    """Makes ``train`` append KL(behaviour ‖ policy afterwards) to the list that is returned."""
    divergences: list[float] = []
    train = agent.train

    def recorded() -> None:
        observations = stored_observations(agent)
        before = frozen(agent.policy)
        train()
        divergences.append(joint_kl64(before, frozen(agent.policy), observations))

    agent.train = recorded  # type: ignore[method-assign]
    return divergences
