"""K-FAC with second moments of its own in the factors' eigenbasis."""

from typing import Any

from torch import nn

from npg.optim.kfac import KFAC


class EKFAC(KFAC):
    """:class:`KFAC` with ``eigenbasis=True``.

    Args:
        model: Module to train.
        **options: As for :class:`KFAC`.
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, **{"eigenbasis": True, **options})
