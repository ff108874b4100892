"""Optimizers that draw random numbers, from a generator that is saved with them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.optim.gradient import GradientOptimizer


class SeededOptimizer(GradientOptimizer):
    """A :class:`GradientOptimizer` with a ``generator`` on its parameters' device.

    Args:
        model: Module, or parameters, or groups of them.
        defaults: Settings of the groups, ``lr`` among them.
        parameters: Restricts a module to these of its parameters.
        seed: Seeds the generator.
        **options: As for :class:`GradientOptimizer`.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        defaults: dict[str, Any],
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
        *,
        seed: int,
        **options: Any,
    ) -> None:
        super().__init__(model, defaults, parameters, **options)
        device = self.param_groups[0]["params"][0].device
        self.generator = torch.Generator("cpu" if device.type == "meta" else device)
        self.generator.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """torch's state, and the generator's under ``"generator"``."""
        return {**super().state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave.

        Args:
            state_dict: Of this class.

        Raises:
            ConfigurationError: If it is of another.
        """
        rest = dict(state_dict)
        if "generator" not in rest:
            raise ConfigurationError(
                f"the state has no generator: it is of another optimizer than {type(self).__name__}"
            )
        generator = rest.pop("generator")
        super().load_state_dict(rest)
        self.generator.set_state(generator.cpu())
