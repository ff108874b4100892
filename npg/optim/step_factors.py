"""Kronecker factors of a closure's predictions, gathered by optimizers that solve with them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from npg.curvature.kronecker import Block, KroneckerFisher
from npg.errors import ConfigurationError
from npg.preconditioners import FactoredInverse, KroneckerInverse

# Factors of few samples are singular: they are damped even where the system is not.
LEAST_FACTOR_DAMPING = 1e-4


def generator_like(parameters: Sequence[Tensor], seed: int) -> torch.Generator:
    """A generator where parameters are; on the CPU for those that are nowhere."""
    device = parameters[0].device
    return torch.Generator("cpu" if device.type == "meta" else device).manual_seed(seed)


class StepFactors:
    """Listens to a model from :meth:`listen` to :meth:`inverse`, or :meth:`pause`.

    Args:
        model: Module whose layers to listen to.
        parameters: Of the system to be solved, in order.
        generator: Source of labels.
        decay: Weight of earlier steps in the factors; 0 forgets them.

    Raises:
        ConfigurationError: If the model is no module.
    """

    def __init__(
        self, model: object, parameters: Sequence[Tensor], generator: torch.Generator, decay: float
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigurationError(
                "Kronecker factors listen to layers: pass the module as model, and parameters= "
                "for a part of it"
            )
        self.fisher = KroneckerFisher(
            model, parameters, kind="sampled", generator=generator, in_evaluation=True
        )
        self.fisher.pause()  # hooks keep others from passing the modules by
        self.inverses = KroneckerInverse(self.fisher.blocks)
        self.decay = decay

    @property
    def blocks(self) -> Sequence[Block]:
        """One per layer."""
        return self.fisher.blocks

    def listen(self) -> None:
        """Hooks the model, before the prediction is computed."""
        self.fisher.listen()

    def pause(self) -> None:
        """Takes the hooks off."""
        self.fisher.pause()

    def inverse(
        self,
        parameters: Sequence[Tensor],
        prediction: Distribution,
        damping: float,
        mask: Tensor | None = None,
    ) -> FactoredInverse:
        """Brings the factors up to date, and listens no longer.

        Args:
            parameters: Of the flat vectors, in order.
            prediction: Of what the model has just computed, with its graph.
            damping: λ of the system.
            mask: Which samples count. Default: all.

        Returns:
            Their inverse.
        """
        self.fisher.observe(prediction, mask)
        if bool(self.fisher.finite()):
            self.fisher.update(self.decay)
        self.fisher.pause()
        self.inverses.refresh(max(damping, LEAST_FACTOR_DAMPING))
        return FactoredInverse(self.inverses, parameters)

    def state(self) -> list[dict[str, Any]]:
        """Running means of every block, in order."""
        return self.fisher.state()

    def load(self, state: list[dict[str, Any]]) -> None:
        """Restores what :meth:`state` gave."""
        self.fisher.load(state)
