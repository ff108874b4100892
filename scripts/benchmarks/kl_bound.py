"""The KL bound, recomputed outside the agent in float64 on every update of whole runs."""

import copy

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from agents import TRPO
from agents.rollout import flat_observations
from benchmarks.report import Row, show
from benchmarks.training_run import build

CASES = [("CartPole-v1", 100_000), ("Hopper-v5", 100_000), ("HalfCheetah-v5", 100_000)]


def distribution(policy: ActorCriticPolicy, observations: torch.Tensor):
    """The action distribution by plain layers, without the library's own code."""
    hidden = policy.mlp_extractor.policy_net(observations.double())
    output = policy.action_net(hidden)
    if hasattr(policy, "log_std"):
        return Independent(Normal(output, policy.log_std.exp().expand_as(output)), 1)
    return Categorical(logits=output)


class Watched(TRPO):
    """Records KL(policy before ‖ policy after ``train()``) over the rollout."""

    def train(self) -> None:
        before = copy.deepcopy(self.policy).double()
        observations = flat_observations(self.rollout_buffer, 0, self.n_steps, self.device).clone()
        super().train()
        after = copy.deepcopy(self.policy).double()
        with torch.no_grad():
            divergence = kl_divergence(
                distribution(before, observations), distribution(after, observations)
            )
        self.divergences.append(float(divergence.mean()))


def run(rounds: int, command: str) -> None:
    """Trains under the presets and compares the largest divergence with the target."""
    rows = []
    for env_id, steps in CASES:
        model = build("npg", env_id, 0, {})
        model.__class__ = Watched
        model.divergences = []
        model.learn(steps)
        worst = max(model.divergences)
        rows.append(
            Row(
                f"{env_id}, {len(model.divergences)} updates of {steps:,} steps",
                f"largest KL {worst:.6f}",
                f"target {model.target_kl:g}",
                worst / model.target_kl,
                "<= 1.0",
            )
        )
        model.get_env().close()
    show("KL(behaviour ‖ policy after the update), joint, float64", rows, command)
