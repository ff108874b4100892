"""RMSprop's step on one vector.

torch's makes five calls for every parameter, and a 64-64 policy has a dozen of them. Where their
gradients lie in one vector g, the squares' average v can, too:

    v ← α v + (1 − α) g²,    θ ← θ − lr g / (√v + ε).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer


class FlatRMSprop:
    """Steps in place of an optimizer, whose state stays the one that is saved and loaded.

    Args:
        optimizer: For which :meth:`fits` will be asked before each step.
        parameters: The parameters that get a step.
        gradient: Theirs, side by side, [P].
    """

    def __init__(
        self, optimizer: torch.optim.RMSprop, parameters: Sequence[Tensor], gradient: Tensor
    ) -> None:
        self.optimizer, self.parameters, self.gradient = optimizer, parameters, gradient
        self.squares, self.update = torch.zeros_like(gradient), torch.empty_like(gradient)
        self.averages, self.updates = (
            [
                piece.view_as(p)
                for piece, p in zip(
                    vector.split([p.numel() for p in parameters]), parameters, strict=True
                )
            ]
            for vector in (self.squares, self.update)
        )
        self.steps: list[Tensor] = []
        self.ids = {id(p) for p in parameters}

    def fits(self) -> bool:
        """Whether the optimizer does nothing but the formula, for all of the parameters."""
        optimizer = self.optimizer
        if type(optimizer) is not torch.optim.RMSprop or len(optimizer.param_groups) > 1:
            return False
        (group,) = optimizer.param_groups
        more = ("momentum", "weight_decay", "centered", "maximize", "capturable", "differentiable")
        watched = (
            "step" in vars(optimizer)  # a scheduler's wrapper
            or optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
        )
        owns_all = self.ids.issubset(map(id, group["params"]))
        return owns_all and not watched and not any(group[name] for name in more)

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
