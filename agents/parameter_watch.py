"""Noticing callbacks that change the policy in the middle of a rollout, or of a population."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from npg.optim import EvolutionStrategies


def watched(callback: BaseCallback) -> bool:
    """Whether anybody looks at a step; ``learn`` without a callback makes an empty one."""
    return not (type(callback) is ConvertCallback and callback.callback is None)


class ParameterWatch:
    """Compares the policy's parameters with those that acted so far.

    Values and log-probabilities are computed after the steps they belong to. They must be those of
    the parameters that acted, so these are kept until then. Writing through ``parameter.data`` in
    place is the one change that leaves no trace to notice.

    Args:
        policy: The policy.
        callback: What could change it.

    Attributes:
        active: Whether there is a callback at all; without one nothing is checked.
    """

    def __init__(self, policy: ActorCriticPolicy, callback: BaseCallback) -> None:
        self.policy = policy
        self.active = watched(callback)
        self.remember()

    def remember(self) -> None:
        """Takes the present parameters as those that act from now on."""
        if not self.active:
            return
        self.slots = [
            (module._parameters, name)
            for module in self.policy.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self.values = [slots[name].detach().clone() for slots, name in self.slots]
        self.signature = self._signature()

    def changed(self) -> bool:
        """Whether a parameter was written to or replaced since :meth:`remember`."""
        return self._signature() != self.signature

    def _signature(self) -> list[tuple[int, int]]:
        return [(slots[name].data_ptr(), slots[name]._version) for slots, name in self.slots]

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Within this context the policy has the remembered values."""
        parameters = [slots[name] for slots, name in self.slots]
        present: list[Tensor] = [parameter.data for parameter in parameters]
        try:
            for parameter, value in zip(parameters, self.values, strict=True):
                parameter.data = value
            with torch.no_grad():
                yield
        finally:
            for parameter, value in zip(parameters, present, strict=True):
                parameter.data = value


class SearchWatch:
    """Compares what a search is about to move with what its candidates were drawn around.

    Values that were changed and put back, as for an evaluation of other parameters, are no change.

    Args:
        optimizer: The search.

    Attributes:
        start: Its parameters as they were, flat [P].
    """

    def __init__(self, optimizer: EvolutionStrategies) -> None:
        self.optimizer = optimizer
        self.groups = optimizer.param_groups  # loading a state makes another list
        self.start = self._flat()

    def changed(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether parameters were written to or frozen, or a state or another search put in."""
        same = optimizer is self.optimizer and optimizer.param_groups is self.groups
        return not (same and torch.equal(self._flat(), self.start))

    def _flat(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.optimizer.tensors()])
