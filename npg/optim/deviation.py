"""The deviation of a search's noise, which may follow its natural gradient."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from npg.errors import ConfigurationError
from npg.linalg import flatten, split

Adapt = Literal["none", "global", "separable"]

# log σ moves at most so far in a step.
LARGEST_CHANGE = 1.0


class Deviation:
    """σ, one for all parameters or one for each.

    Args:
        sigma: At first, for all.
        separable: Whether there is one for each.

    Attributes:
        sigma: That of all; where there is one for each, what a new parameter begins with.
        each: Those of the parameters, in the order of the groups.
    """

    def __init__(self, sigma: float, *, separable: bool) -> None:
        self.sigma = sigma
        self.separable = separable
        self.each: list[Tensor] = []

    def now(self, places: Sequence[Tensor], dtype: torch.dtype) -> float | Tensor:
        """The deviation of the noise.

        Args:
            places: All parameters of all groups.
            dtype: Of flat vectors of them.

        Returns:
            σ, or those of the parameters that are not frozen, [P].
        """
        if not self.separable:
            return self.sigma
        wide = torch.promote_types(dtype, torch.float32)  # halves would round small changes away
        for parameter in places[len(self.each) :]:
            like = torch.empty_like(parameter, dtype=wide, requires_grad=False)
            self.each.append(like.fill_(self.sigma))
        return flatten(self._active(places))

    def _active(self, places: Sequence[Tensor]) -> list[Tensor]:
        return [d for d, p in zip(self.each, places, strict=True) if p.requires_grad]

    def grow(self, growth: Tensor, rate: float | None, places: Sequence[Tensor]) -> None:
        """Moves log σ.

        Args:
            growth: Its natural gradient: a number, or [P]; overwritten.
            rate: η_σ. Default: 1 for one σ, (3 + ln P)/(5√P) for one of each of P parameters.
            places: As for :meth:`now`.
        """
        if rate is None:
            size = growth.numel()
            rate = (3 + math.log(size)) / (5 * math.sqrt(size)) if self.separable else 1.0
        factor = growth.mul_(rate).clamp_(-LARGEST_CHANGE, LARGEST_CHANGE).exp_()
        if not self.separable:
            self.sigma *= float(factor)
            return
        active = self._active(places)
        for deviation, change in zip(active, split(factor, active), strict=True):
            deviation *= change

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`load_state_dict` restores."""
        return {"sigma": self.sigma, "each": [d.clone() for d in self.each]}

    def check_state(self, state: dict[str, Any], places: Sequence[Tensor]) -> None:
        """Refuses what :meth:`load_state_dict` cannot restore.

        Args:
            state: What :meth:`state_dict` gave.
            places: All parameters of all groups.

        Raises:
            ConfigurationError: If it is of other parameters, or of one σ instead of many.
        """
        each = state["each"]
        if (each and not self.separable) or any(
            d.shape != p.shape for d, p in zip(each, places, strict=False)
        ):
            raise ConfigurationError(
                "the state's deviations do not fit: they are of other parameters, or of another "
                "adapt="
            )

    def load_state_dict(self, state: dict[str, Any], places: Sequence[Tensor]) -> None:
        """Restores a state that was checked, in its own precision."""
        self.sigma = state["sigma"]
        self.each = [d.to(p.device, copy=True) for d, p in zip(state["each"], places, strict=False)]
