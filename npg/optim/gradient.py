"""What the optimizers have in common that need gradients alone, and stand in the plain loop."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.optim.base import Protocol, attributes, trainable
from npg.optim.finite import masked, usable
from npg.optim.shards import plain_tensors
from npg.preconditioners.base import remembered


@dataclass(frozen=True)
class Batch:
    """Parameters of a group that have gradients, all of which took the same number of steps.

    Complex tensors are seen as real ones with a last dimension of two.

    Attributes:
        parameters: What to move, in place.
        gradients: Of what is minimised, with the L2 term.
        states: What is remembered of each parameter.
        step: Number of this step, from 1.
    """

    parameters: list[Tensor]
    gradients: list[Tensor]
    states: list[dict[str, Any]]
    step: int

    def remembered(self, name: str) -> list[Tensor]:
        """A tensor of every parameter's shape, zero before its first step."""
        return remembered(self.states, name, self.parameters)

    @staticmethod
    def joined(batches: "list[Batch]") -> "list[Batch]":
        """All of them as one, with the first one's number of steps."""
        if len(batches) < 2:
            return batches
        return [
            Batch(
                [p for batch in batches for p in batch.parameters],
                [g for batch in batches for g in batch.gradients],
                [s for batch in batches for s in batch.states],
                batches[0].step,
            )
        ]

    def only(self, places: Sequence[int]) -> "Batch":
        """The batch of some of its parameters."""
        return Batch(
            [self.parameters[i] for i in places],
            [self.gradients[i] for i in places],
            [self.states[i] for i in places],
            self.step,
        )


class GradientOptimizer(torch.optim.Optimizer):
    """θ ← θ − η d(g), d what a subclass makes of the gradients.

    On the CPU a parameter whose gradient is not finite sits out the step, which its state counts as
    ``"skipped"``. From other devices nothing is read. Each group has ``lr``, ``weight_decay`` and
    ``maximize``.

    Args:
        model: Module, or parameters, or groups of them.
        defaults: Settings of the groups, ``lr`` among them.
        parameters: Restricts a module to these of its parameters.
        weight_decay: λ: of an L2 term λ/2 ‖θ‖² in the objective, or decoupled from it.
        maximize: Whether to climb.
        foreach: Whether to work on all tensors of a group at once; one by one is slower, takes
            less memory, and ends at the same numbers.

    Raises:
        ConfigurationError: If a setting cannot work, or there is nothing to train.
    """

    protocol: ClassVar[Protocol] = "gradient"
    # Whether parameters shrink by η λ instead of having λ θ in their gradients.
    decoupled: bool = False
    # Whether gradients that are not finite count as zero on devices where looking would stall:
    # for steps that are long enough to hide what that costs.
    masks: ClassVar[bool] = False
    # Whether gradients are squared: one whose square overflows then counts as not finite.
    squares: ClassVar[bool] = True
    # Whether an entry of a parameter moves by its own gradient alone: what is spread over ranks can
    # then stay so in the step.
    elementwise: ClassVar[bool] = False
    # Arguments that decide of what shape states are, and so must be the same to load them.
    structural: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        defaults: dict[str, Any],
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool = True,
    ) -> None:
        settings = {**defaults, "weight_decay": weight_decay, "maximize": maximize}
        settings["foreach"] = foreach
        super().__init__(trainable(model, parameters), settings)
        self.settings = tuple(settings)  # torch adds names of its own to these
        for group in self.param_groups:
            self._check(group)

    def _check(self, group: dict[str, Any]) -> None:
        """Refuses what cannot work, given at first or changed in a group later."""
        check_range(group, "lr", 0, math.inf)
        check_range(group, "weight_decay", 0, math.inf)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: Torch's kind: calls ``backward()`` and returns the loss. Default: the
                gradients are there.

        Returns:
            The closure's loss.

        Raises:
            ConfigurationError: If a setting cannot work, or a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._move()
        return loss

    def _move(self) -> None:
        """The step proper; subclasses' own steps call this, and not ``super().step()``.

        Torch hooks the ``step`` of every class that it meets: a step inside a step would call them
        twice.
        """
        with plain_tensors(self, elementwise=self.elementwise):
            groups = [self._read(group) for group in self.param_groups]
            batches = [(group, batch) for group in groups for batch in self._batches(group)]
            for group, batch in batches:  # nothing moves before all were looked at
                self._update(group, batch)

    def _read(self, group: dict[str, Any]) -> dict[str, Any]:
        """The settings of a group, checked; a rate that is a tensor as a number."""
        if isinstance(group["lr"], Tensor):
            group = {**group, "lr": float(group["lr"])}
        self._check(group)
        return group

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        """Finds the way, and only then shrinks and moves the batch's parameters."""
        raise NotImplementedError

    def _shrink(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Decoupled weight decay."""
        if self.decoupled and group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])

    def _batches(self, group: dict[str, Any]) -> list[Batch]:
        """Prepares what has gradients: counted, signed, decayed, real."""
        by_step: dict[int, Batch] = {}
        singles: list[Batch] = []
        parameters = [p for p in group["params"] if p.grad is not None]
        if any(p.grad.layout != torch.strided for p in parameters):
            raise ConfigurationError(
                f"{type(self).__name__} needs dense gradients: use nn.Embedding(..., "
                "sparse=False), or torch.optim.SparseAdam for the sparse ones"
            )
        gradients = [real_view(p.grad) for p in parameters]
        states = [self.state[p] for p in parameters]
        can_step = self._usable(gradients, states)
        for parameter, gradient, state, can in zip(
            parameters, gradients, states, can_step, strict=True
        ):
            if not can:
                continue
            if self.masks and gradient.device.type != "cpu":
                gradient = masked(gradient, state)
            state["step"] = step = int(state.get("step", 0)) + 1
            batch = by_step.setdefault(step, Batch([], [], [], step))
            if not group["foreach"]:
                batch = Batch([], [], [], step)
                singles.append(batch)
            batch.parameters.append(real_view(parameter))
            batch.gradients.append(gradient)
            batch.states.append(state)
        batches = singles if not group["foreach"] else list(by_step.values())
        return [self._decayed(group, batch) for batch in batches]

    def _usable(self, gradients: list[Tensor], states: list[dict[str, Any]]) -> list[bool]:
        """Which of them can take a step, see :func:`usable`."""
        return usable(gradients, states, squares=self.squares)

    def _decayed(self, group: dict[str, Any], batch: Batch) -> Batch:
        decay, gradients = group["weight_decay"], batch.gradients
        if group["maximize"]:
            gradients = list(torch._foreach_neg(gradients))
        if decay and not self.decoupled:
            gradients = list(torch._foreach_add(gradients, batch.parameters, alpha=decay))
        return Batch(batch.parameters, gradients, batch.states, batch.step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what ``state_dict()`` gave, uncast, and leaves that dictionary alone later on.

        Torch casts tensors to their parameter's dtype, which moments may well exceed.
        """
        saved = copy.deepcopy(state_dict)
        self._check_structure(saved.pop("structure", {}))
        super().load_state_dict(saved)
        parameters = [p for group in self.param_groups for p in group["params"]]
        numbers = [i for group in saved["param_groups"] for i in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in saved["state"].get(number, {}).items():
                self.state[parameter][name] = _moved(value, parameter.device)

    def state_dict(self) -> dict[str, Any]:
        """torch's state, and under ``"structure"`` what decided of what shape it is."""
        own = super().state_dict()
        if self.structural:
            own["structure"] = self._structure()
        return own

    def _structure(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.structural}

    def _check_structure(self, saved: dict[str, Any]) -> None:
        here = self._structure()
        if saved != here:
            raise ConfigurationError(
                f"the state is of an optimizer with {saved or 'no such settings'}, and this "
                f"{type(self).__name__} has {here}: make it with the same"
            )

    def __getstate__(self) -> dict[str, Any]:
        """All attributes."""
        return attributes(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores, and gives groups that were saved before a setting existed its default."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name in self.settings:
                group.setdefault(name, self.defaults[name])


def check_range(settings: dict[str, Any], name: str, lower: float, upper: float) -> None:
    """Refuses a setting outside [lower, upper).

    Args:
        settings: Of a group.
        name: Of the setting.
        lower: Least value.
        upper: What it must stay below.

    Raises:
        ConfigurationError: If it is outside, or no number.
    """
    value = settings[name]
    if type(value) is float and lower <= value < upper:  # nearly always, and in every step
        return
    numbers: Sequence[Any] = value if isinstance(value, tuple | list) else [value]
    if any(isinstance(number, Tensor) for number in numbers):
        return  # on a device, perhaps
    if not all(isinstance(number, float | int) and lower <= number < upper for number in numbers):
        raise ConfigurationError(f"{name} must be in [{lower:g}, {upper:g}), got {value!r}")


def _moved(value: object, device: torch.device) -> object:
    """A value of a state, or a list of them, on a device."""
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return value.to(device) if isinstance(value, Tensor) else value


def real_view(tensor: Tensor) -> Tensor:
    """A complex tensor as a real one with a last dimension of two; any other as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
