"""Shampoo as an optimizer: momentum, grafting, blocks, intervals."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.optim.gradient import Batch, GradientOptimizer, check_range
from npg.optim.grafting import Graft, grafted
from npg.preconditioners.blocks import partition
from npg.preconditioners.shampoo import ShampooRoots


class Shampoo(GradientOptimizer):
    """θ ← θ − η d, d the mean gradient times an inverse root along every dimension.

    With grafting a block's step has the length that another method would give it; before
    ``start_step`` it is that method's step altogether, so that a start that never comes makes this
    torch's Adam, Adagrad, RMSprop or SGD.

    Args:
        model: Module, or parameters, or groups of them.
        lr: η.
        betas: Of the mean gradient, and of the moments' and the grafted method's running means;
            a second one of 1 takes sums.
        epsilon: ε, added to the moments. High values turn towards the gradient.
        graft: ``"adam"``, ``"rmsprop"``, ``"adagrad"``, ``"sgd"``, or None: Shampoo's own length.
        graft_epsilon: ε of the grafted method.
        block_size: Largest dimension of a block: larger ones see more correlations, and cost the
            cube of it per root.
        merge_size: Largest product up to which neighbouring dimensions are joined first; 0 none.
        root_interval: Steps from one computation of the roots to the next.
        start_step: Number of the first step along Shampoo's direction, from 1; ``math.inf`` never.
        weight_decay: λ.
        decoupled_weight_decay: Whether parameters shrink by η λ instead of having λ θ in their
            gradients.
        maximize: Whether to climb.
        foreach: Whether to work on all tensors of a group at once, where that is possible.
        parameters: Restricts a module to these of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work.
        NumericalError: In a step, if a moment has had no root three times in a row.

    Reference:
        Gupta, Koren and Singer, "Shampoo: preconditioned stochastic tensor optimization", 2018;
        Anil et al., "Scalable second order optimization for deep learning", 2020, for grafting.
    """

    masks = True
    structural = ("block_size", "merge_size")

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.95),
        epsilon: float = 1e-10,
        *,
        graft: Graft | None = "adam",
        graft_epsilon: float = 1e-8,
        block_size: int = 256,
        merge_size: int = 256,
        root_interval: int = 10,
        start_step: float = 1,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        foreach: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        if graft not in ("adam", "rmsprop", "adagrad", "sgd", None):
            raise ConfigurationError(
                f"graft must be adam, rmsprop, adagrad, sgd or None, got {graft!r}"
            )
        self.graft = graft
        self.block_size = block_size
        self.merge_size = merge_size
        self.root_interval = root_interval
        self.start_step = start_step
        self.decoupled = decoupled_weight_decay
        if block_size < 1 or merge_size < 0 or root_interval < 1 or not start_step >= 1:
            raise ConfigurationError(
                "block_size, root_interval and start_step must be at least 1 and merge_size at "
                f"least 0, got {block_size}, {root_interval}, {start_step} and {merge_size}"
            )
        if graft is None and start_step > 1:
            raise ConfigurationError("start_step= needs graft=, the method to start with")
        super().__init__(
            model,
            {"lr": lr, "betas": betas, "epsilon": epsilon, "graft_epsilon": graft_epsilon},
            parameters,
            weight_decay=weight_decay,
            maximize=maximize,
            foreach=foreach,
        )

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_range(group, "epsilon", 0, math.inf)
        check_range(group, "graft_epsilon", 0, math.inf)
        first, second = group["betas"]
        if not (0 <= first < 1 and 0 <= second <= 1):
            raise ConfigurationError(f"betas must be in [0, 1) and [0, 1], got {group['betas']}")

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        first = group["betas"][0]
        mean = batch.gradients
        if first:
            mean = batch.remembered("mean")
            torch._foreach_lerp_(mean, batch.gradients, 1 - first)
        # Every direction is linear in the mean: its bias is taken out of the step.
        steps = None if self.graft is None else grafted(self.graft, group, batch, mean)
        directions = list(mean if steps is None else steps)
        filled = [i for i, gradient in enumerate(batch.gradients) if gradient.numel()]
        if filled and self.start_step < math.inf:
            roots = self._preconditioner(group, batch.only(filled))
            roots.update([batch.gradients[i] for i in filled])
            if batch.step % self.root_interval == 0 or not roots.ready:
                roots.refresh()
            if batch.step >= self.start_step:
                lengths = None if steps is None else [steps[i] for i in filled]
                for i, found in zip(
                    filled, roots.apply([mean[i] for i in filled], lengths), strict=True
                ):
                    directions[i] = found
        self._shrink(group, batch.parameters)
        rate = group["lr"] / (1 - first**batch.step)
        torch._foreach_add_(batch.parameters, directions, alpha=-rate)

    def _preconditioner(self, group: dict[str, Any], batch: Batch) -> ShampooRoots:
        blocks = [partition(p.shape, self.block_size, self.merge_size) for p in batch.parameters]
        return ShampooRoots(batch.states, blocks, group["betas"][1], group["epsilon"])
