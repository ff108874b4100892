"""Steps of torch's RMSprop and Adam past torch's bookkeeping.

torch's RMSprop makes five calls for every parameter, and a 64-64 policy has a dozen of them; its
fused Adam is one kernel, and prepares the call for longer than the call takes. The optimizer's own
state stays the one that is used, saved and loaded.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer


class PlainStep:
    """Steps in place of an optimizer of one kind.

    Args:
        optimizer: For which :meth:`fits` will be asked before each step.
        parameters: The parameters that get a step.
        gradient: Theirs, side by side, [P].
    """

    kind: ClassVar[type[torch.optim.Optimizer]]
    # Options that the formula leaves out.
    others: ClassVar[tuple[str, ...]]

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradient: Tensor
    ) -> None:
        self.optimizer, self.parameters, self.gradient = optimizer, parameters, gradient
        self.ids = {id(p) for p in parameters}

    def fits(self) -> bool:
        """Whether the optimizer does nothing but the formula, for all of the parameters."""
        optimizer = self.optimizer
        if type(optimizer) is not self.kind or len(optimizer.param_groups) > 1:
            return False
        (group,) = optimizer.param_groups
        watched = (
            "step" in vars(optimizer)  # a scheduler's wrapper
            or optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
        )
        owns_all = self.ids.issubset(map(id, group["params"]))
        return owns_all and not watched and not any(group[name] for name in self.others)

    def step(self) -> None:
        """Takes the step."""
        raise NotImplementedError

    def _views(self, vector: Tensor) -> list[Tensor]:
        """Pieces of a vector [P] in the shapes of the parameters."""
        pieces = vector.split([p.numel() for p in self.parameters])
        return [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]


class FlatRMSprop(PlainStep):
    """RMSprop on one vector g, with the squares' average v in one, too.

    v ← α v + (1 − α) g²,    θ ← θ − lr g / (√v + ε).
    """

    kind = torch.optim.RMSprop
    others = ("momentum", "weight_decay", "centered", "maximize", "capturable", "differentiable")

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradient: Tensor
    ) -> None:
        super().__init__(optimizer, parameters, gradient)
        self.squares, self.update = torch.zeros_like(gradient), torch.empty_like(gradient)
        self.averages, self.updates = self._views(self.squares), self._views(self.update)
        self.steps: list[Tensor] = []

    @torch.no_grad()
    def step(self) -> None:
        """Takes the step."""
        self._adopt()
        (group,) = self.optimizer.param_groups
        torch._foreach_add_(self.steps, 1)
        gradient, squares = self.gradient, self.squares
        squares.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
        torch.sqrt(squares, out=self.update).add_(group["eps"])
        torch.div(gradient, self.update, out=self.update)
        torch._foreach_add_(self.parameters, self.updates, alpha=-group["lr"])

    def _adopt(self) -> None:
        """Makes the optimizer's state a view of ours, with what a checkpoint may have put there."""
        states = [self.optimizer.state[p] for p in self.parameters]
        if all(
            state.get("square_avg") is average
            for state, average in zip(states, self.averages, strict=True)
        ):
            return
        for state, average in zip(states, self.averages, strict=True):
            average.copy_(state.get("square_avg", torch.zeros_like(average)))
            state["square_avg"] = average
            state["step"] = state.get("step", torch.tensor(0.0))
        self.steps = [state["step"] for state in states]


class DirectAdam(PlainStep):
    """Adam by its fused kernel, on the averages that the optimizer has."""

    kind = torch.optim.Adam
    others = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")

    def __init__(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradient: Tensor
    ) -> None:
        super().__init__(optimizer, parameters, gradient)
        self.gradients = self._views(gradient)

    def fits(self) -> bool:
        """Whether the optimizer does nothing but the formula, for all of the parameters."""
        return self.gradient.device.type == "cpu" and super().fits()

    @torch.no_grad()
    def step(self) -> None:
        """Takes the step; the optimizer's first is its own, which makes the averages."""
        states = [self.optimizer.state.get(p) for p in self.parameters]
        if not all(states):
            self.optimizer.step()
            return
        (group,) = self.optimizer.param_groups
        beta1, beta2 = group["betas"]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            self.parameters,
            self.gradients,
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


PLAIN_STEPS: tuple[type[PlainStep], ...] = (FlatRMSprop, DirectAdam)


def plain_step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradient: Tensor
) -> PlainStep | None:
    """Returns the plain step of an optimizer's kind; see :class:`PlainStep`."""
    for step in PLAIN_STEPS:
        if type(optimizer) is step.kind:
            return step(optimizer, parameters, gradient)
    return None


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Has torch's Adam take one kernel instead of a dozen for each parameter."""
    if type(optimizer) is torch.optim.Adam:
        for group in optimizer.param_groups:
            group["fused"] = group["fused"] is not False and not group["foreach"]
