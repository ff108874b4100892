"""Fitting the value function to the λ-returns."""

import math
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from agents.over_ranks import average_gradients
from agents.plain_steps import fuse
from agents.predictions import Parts, take
from agents.rollout import Batch
from agents.shared_features import KLBudget
from agents.shuffling import shuffled
from agents.value_minibatches import hand_written
from npg import ranks
from npg.linalg import assign_
from npg.optim import NewtonCG

CriticKind = Literal["adam", "gauss-newton"]


class Critic(Protocol):
    """A way to fit the values."""

    def fit(self, batch: Batch, budget: KLBudget) -> float:
        """Fits, within the budget for what is shared; returns the mean loss, nan if skipped."""


class AdamCritic:
    """Minibatches of the policy's own optimizer, as in Stable-Baselines3.

    Args:
        policy: Owner of the optimizer.
        parts: The policy's parameters.
        epochs: Passes over the rollout.
        batch_size: Rows per minibatch.
    """

    def __init__(
        self, policy: ActorCriticPolicy, parts: Parts, epochs: int, batch_size: int
    ) -> None:
        self.policy = policy
        self.parts = parts
        self.epochs = epochs
        self.batch_size = batch_size
        fuse(policy.optimizer)

    def fit(self, batch: Batch, budget: KLBudget) -> float:
        """Fits by minibatches; one whose loss is not finite is skipped."""
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        by_hand = hand_written(self.policy, batch, self.batch_size)
        losses: list[float] = []
        for _ in range(self.epochs):
            for loss in self._by_autograd(batch) if by_hand is None else by_hand.epoch():
                if not math.isfinite(loss):
                    continue
                losses.append(loss)
                if budget.spent:
                    for parameter in self.parts.shared:
                        parameter.grad = None
                optimizer.step()
            budget.enforce()
        optimizer.zero_grad()
        return sum(losses) / len(losses) if losses else math.nan

    def _by_autograd(self, batch: Batch) -> Iterator[float]:
        """Yields the loss of every minibatch of an epoch, with its gradients in place."""
        order = torch.randperm(len(batch.returns) * ranks.count()).to(batch.returns.device)
        every, sizes, shares = shuffled(order, batch.num_envs, self.batch_size)
        for rows, share in zip(every.split(sizes), shares, strict=True):
            values = self.policy.predict_values(take(batch.observations, rows)).flatten()
            loss = F.mse_loss(values, batch.returns[rows])
            self.policy.optimizer.zero_grad()
            loss.backward()
            told = loss.detach()
            average_gradients(self.parts.critic, share, told)
            yield float(told)


class GaussNewtonCritic:
    """A few damped Gauss–Newton steps on the whole rollout.

    Values are linear least squares in the last layer and nearly so elsewhere, so that two of
    these steps do what hundreds of minibatches do. Few iterations of conjugate gradient and a
    damping that stays high are on purpose: solved exactly, the system fits the rollout's noise,
    and predicts the next rollout worse. On images a step costs more than an epoch of minibatches:
    prefer "adam" there.

    Args:
        policy: Owner of the value function.
        parts: The policy's parameters.
        steps: Steps per rollout.
    """

    def __init__(self, policy: ActorCriticPolicy, parts: Parts, steps: int = 2) -> None:
        self.policy = policy
        self.steps = steps
        shared = {id(p) for p in parts.shared}
        self.optimizer = _gauss_newton(parts.critic)
        own = [p for p in parts.critic if id(p) not in shared]
        self.head = _gauss_newton(own) if own else None

    def fit(self, batch: Batch, budget: KLBudget) -> float:
        """Fits by full-batch steps; after the budget is spent, what is not shared goes on alone."""
        targets = batch.returns.unsqueeze(1)

        def closure() -> tuple[Tensor, Tensor]:
            values = self.policy.predict_values(batch.observations)
            return F.mse_loss(values, targets), values

        losses = []
        for _ in range(self.steps):
            optimizer = self.head if budget.spent else self.optimizer
            if optimizer is None:
                break
            losses.append(float(optimizer.step(closure)))
            budget.enforce()
        return sum(losses) / len(losses)


def _gauss_newton(parameters: list[Tensor]) -> NewtonCG:
    optimizer = NewtonCG(
        parameters,
        damping=0.1,
        damping_factor=2.0,
        min_damping=0.02,
        cg_max_steps=10,
        kronecker_cg_max_steps=3,
        cg_tolerance=1e-3,
        cg_progress_tolerance=None,
        cg_backtracking=False,
        warm_start=None,
        line_search_max_iter=6,
        deterministic=False,
    )
    optimizer.distributed = ranks.count() > 1
    return optimizer


class Snapshot:
    """Parameters to return to if what follows fails."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self.values = [p.detach().clone() for p in self.parameters]

    def restore(self) -> None:
        """Restores all, bit for bit."""
        assign_(self.parameters, self.values)

    @torch.no_grad()
    def shorten(self, fraction: float) -> None:
        """Goes only this fraction of the way from here to where they are."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.copy_(torch.lerp(value, parameter, fraction))

    def finite(self) -> bool:
        """Whether all are finite now."""
        return all(bool(torch.isfinite(p.detach().sum())) for p in self.parameters)
