"""Sophia: momentum over a clipped diagonal of the curvature."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from npg.curvature.bartlett import BartlettDiagonal
from npg.errors import ConfigurationError
from npg.optim.finite import usable
from npg.optim.gradient import Batch, GradientOptimizer, check_range, real_view
from npg.optim.hessian import HessianOptimizer
from npg.optim.seeded import SeededOptimizer
from npg.optim.shards import refuse_shards
from npg.preconditioners.diagonal import ClippedCurvature


class _Sophia(GradientOptimizer):
    """θ ← (1 − η λ) θ − η clip(m / max(γ h, ε), ±1), whatever h is."""

    decoupled = True

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_range(group, "betas", 0, 1)
        check_range(group, "gamma", 0, math.inf)
        check_range(group, "eps", 0, math.inf)

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        mean = batch.remembered("mean")
        torch._foreach_lerp_(mean, batch.gradients, 1 - group["betas"][0])
        direction = self._clipped(group, batch.states).apply(mean)
        self._shrink(group, batch.parameters)
        torch._foreach_add_(batch.parameters, direction, alpha=-group["lr"])

    @staticmethod
    def _clipped(group: dict[str, Any], states: list[dict[str, Any]]) -> ClippedCurvature:
        return ClippedCurvature(
            states, decay=group["betas"][1], gamma=group["gamma"], epsilon=group["eps"]
        )

    @torch.no_grad()
    def win_rate(self) -> float:
        """The share of entries that the last step did not clip; 0.1 to 0.5 is what γ is tuned to.

        Returns:
            A number in [0, 1]; nan before the first step.
        """
        inside, total = 0.0, 0
        for group in self.param_groups:
            states = [self.state[p] for p in group["params"] if "mean" in self.state[p]]
            if states:
                means = [state["mean"] for state in states]
                bounds = self._clipped(group, states).denominators(means)
                pairs = zip(means, bounds, strict=True)
                inside += sum(float((m.abs() < bound).sum()) for m, bound in pairs)
                total += sum(m.numel() for m in means)
        return inside / total if total else math.nan


class SophiaG(_Sophia, SeededOptimizer):
    """Sophia with the Gauss–Newton–Bartlett diagonal, in an unchanged training loop.

        θ ← (1 − η λ) θ − η clip(m / max(γ h, ε), ±1),    m ← β₁ m + (1 − β₁) g

    On every ``hessian_interval``-th step, when the user's ``backward()`` reaches the model's
    output, labels are drawn from the prediction and ĝ, the mean gradient at these, makes
    h ← β₂ h + (1 − β₂) B ĝ², B the number of samples (or tokens). γ is the published code's ρ and
    does not depend on B.

    Args:
        model: Module to train, in training mode. Of one in DistributedDataParallel the diagonals
            are averaged over ranks.
        lr: η, by which an entry moves at most.
        betas: β₁ and β₂.
        gamma: γ. High values clip fewer entries, see :meth:`win_rate`.
        weight_decay: λ, decoupled.
        likelihood: What the model's output parametrises: ``"categorical"``, ``"bernoulli"``,
            ``"normal"``, ``"mse"`` or a callable output → Distribution; classes are its last
            dimension. None where :meth:`observe` hands predictions over, with a mask where samples
            do not count.
        hessian_interval: Steps from one measurement to the next.
        eps: ε.
        seed: Seeds the labels.
        maximize: Whether to climb.
        foreach: Whether to work on all tensors of a group at once.
        parameters: Restricts the optimizer to a part of the model.

    Raises:
        ConfigurationError: If a setting cannot work; in a step, if nothing was ever measured.

    Reference:
        Liu et al., "Sophia: a scalable stochastic second-order optimizer for language model
        pre-training", 2023, algorithm 3.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.965, 0.99),
        gamma: float = 0.04,
        weight_decay: float = 0.1,
        *,
        likelihood: str | Callable[[Tensor], Distribution] | None = None,
        hessian_interval: int = 10,
        eps: float = 1e-12,
        seed: int = 0,
        maximize: bool = False,
        foreach: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigurationError(
                "model must be the module itself, not its parameters: SophiaG draws labels from "
                "its output; parameters= restricts it to some of them, SophiaH needs no module"
            )
        if hessian_interval < 1:
            raise ConfigurationError(f"hessian_interval must be at least 1, got {hessian_interval}")
        super().__init__(
            model,
            {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps},
            parameters,
            seed=seed,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )
        refuse_shards(type(self).__name__, self.param_groups)
        self.hessian_interval = hessian_interval
        self.steps = 0
        self.measured = False
        self.bartlett = BartlettDiagonal(
            model, self._tensors(), family=likelihood, generator=self.generator
        )

    def _tensors(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters of the model.

        Args:
            param_group: ``params`` and what differs from the defaults.
        """
        super().add_param_group(param_group)
        if hasattr(self, "bartlett"):
            self.bartlett.parameters = self._tensors()

    def observe(self, prediction: Distribution, mask: Tensor | None = None) -> None:
        """Takes the diagonal from a prediction, where the model's output alone does not say it.

        Call it between the forward pass and ``backward()``.

        Args:
            prediction: What the model just predicted, with its graph, which is kept.
            mask: Which samples count, bool of shape ``batch_shape``. Default: all.
        """
        self.bartlett.observe(prediction, mask)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: Torch's kind: calls ``backward()`` and returns the loss. Default: the
                gradients are there.

        Returns:
            The closure's loss.

        Raises:
            ConfigurationError: If a setting cannot work, a gradient is sparse, or nothing was ever
                measured.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._read(group)
        if self.bartlett.seen:
            diagonals = self.bartlett.take()
            found = list(diagonals)
            states = [self.state[p] for p in found]
            good = usable(list(diagonals.values()), states, "skipped_statistics")
            finite = {p for p, can in zip(found, good, strict=True) if can}
            for group in self.param_groups:
                mine = [p for p in group["params"] if p in finite]
                if mine:
                    states = [self.state[p] for p in mine]
                    self._clipped(group, states).update([real_view(diagonals[p]) for p in mine])
            self.measured = True
        if not self.measured:
            raise ConfigurationError(_nothing_seen(self.bartlett.family))
        self._move()
        self.steps += 1
        self._listen_if_due()
        return loss

    def _listen_if_due(self) -> None:
        self.bartlett.capture.active = self.steps % self.hessian_interval == 0

    def state_dict(self) -> dict[str, Any]:
        """torch's state, the generator's, and the steps taken under ``"steps"``."""
        return {**super().state_dict(), "steps": self.steps, "measured": self.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        rest = dict(state_dict)
        steps, measured = int(rest.pop("steps", 0)), bool(rest.pop("measured", False))
        super().load_state_dict(rest)
        self.steps, self.measured = steps, measured
        self.bartlett.clear()
        self._listen_if_due()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a copy, which listens when this one would have."""
        super().__setstate__(state)
        if hasattr(self, "bartlett"):
            self._listen_if_due()


class SophiaH(_Sophia, HessianOptimizer):
    """Sophia with Hutchinson's estimate of the Hessian's diagonal.

        θ ← (1 − η λ) θ − η clip(m / max(γ h, ε), ±1),    m ← β₁ m + (1 − β₁) g

    On every ``hessian_interval``-th step h ← β₂ h + (1 − β₂) z ⊙ Hz with random signs z; see
    :class:`HessianOptimizer` for where the product comes from.

    Args:
        model: Module, or parameters, or groups of them.
        lr: η, by which an entry moves at most.
        betas: β₁ and β₂.
        gamma: γ. High values clip fewer entries, see :meth:`win_rate`.
        weight_decay: λ, decoupled.
        hessian_interval: Steps from one probe to the next.
        eps: ε.
        seed: Seeds the signs.
        maximize: Whether to climb.
        foreach: Whether to work on all tensors of a group at once.
        parameters: Restricts a module to these of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work; in a step, if a probe is due and the
            gradients have no graph.

    Reference:
        Liu et al., "Sophia: a scalable stochastic second-order optimizer for language model
        pre-training", 2023, algorithms 1 and 3.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.96, 0.99),
        gamma: float = 0.01,
        weight_decay: float = 0.1,
        *,
        hessian_interval: int = 10,
        eps: float = 1e-12,
        seed: int = 0,
        maximize: bool = False,
        foreach: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            model,
            {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps},
            parameters,
            hessian_interval=hessian_interval,
            seed=seed,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )

    def _measure(
        self,
        group: dict[str, Any],
        states: list[dict[str, Any]],
        signs: list[Tensor],
        products: list[Tensor],
    ) -> None:
        if group["maximize"]:  # the curvature of what is minimised
            signs = list(torch._foreach_neg(signs))
        self._clipped(group, states).update(list(torch._foreach_mul(signs, products)))


def _nothing_seen(likelihood: object) -> str:
    if likelihood is None:
        return (
            'SophiaG must know what the model predicts: pass likelihood= ("categorical" for a '
            "cross-entropy), or call observe(distribution) before backward()"
        )
    return (
        "SophiaG has measured nothing yet: the model must be called in training mode, with "
        "gradients, before backward(), and return a tensor that reaches the loss; for other "
        "outputs call observe(distribution) before backward()"
    )
