"""The quadratic model of an objective by the exact Fisher matrix, on a few directions."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from npg import ranks
from npg.curvature import Fisher
from npg.linalg import flatten


class QuadraticModel:
    """gᵀd + ½ dᵀ(F + η I)d around the present parameters, F the exact Fisher matrix of the batch.

    Ask it before the parameters move: F is computed from their graph.

    Args:
        parameters: What d is over.
        prediction: The model's prediction, with its graph.
        gradient: g [P], with the L2 term's.
        decay: η per parameter.
        samples: F is the mean over at most so many of the batch's first entries. None: over all.
        distributed: Whether the batch is that of all ranks of ``torch.distributed``.
    """

    def __init__(
        self,
        parameters: list[Tensor],
        prediction: Distribution,
        gradient: Tensor,
        decay: list[float],
        *,
        samples: int | None = None,
        distributed: bool = False,
    ) -> None:
        self.parameters = parameters
        entries = prediction.batch_shape[0] if prediction.batch_shape else 1
        fewer = samples is not None and samples < entries
        self.fisher = Fisher(parameters, prediction, rows=samples if fewer else None)
        self.gradient = gradient
        self.decay = decay
        self.distributed = distributed

    def restricted(self, span: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Restricts the model to a span.

        Args:
            span: Directions in rows, V [k, P].

        Returns:
            V C Vᵀ [k, k] with the L2 term's curvature in C, V Vᵀ [k, k], and V g [k].
        """
        tangents = [self.fisher.jacobian.jvp(v) for v in span]
        products = [self.fisher.output_product(t) for t in tangents]
        curvature = _flat_rows(tangents) @ _flat_rows(products).T
        if self.distributed:
            ranks.average_([curvature])
        gram = span @ span.T
        if any(self.decay):
            uniform = len(set(self.decay)) == 1
            scaled = gram * self.decay[0] if uniform else (span * self._decays()) @ span.T
            curvature = curvature + scaled
        return curvature, gram, span @ self.gradient

    def change(self, step: Tensor) -> float:
        """The model's change of the objective along a step d [P]."""
        curvature, _, slope = self.restricted(step.unsqueeze(0))
        return float(slope[0] + curvature[0, 0] / 2)

    def _decays(self) -> Tensor:
        return flatten(
            torch.full_like(p, eta) for p, eta in zip(self.parameters, self.decay, strict=True)
        )

    def decay_change(self, before: list[Tensor]) -> float:
        """By how much the L2 term has grown since the parameters were there."""
        if not any(self.decay):
            return 0.0
        change = [
            eta / 2 * (p.double().square().sum() - old.double().square().sum())
            for p, old, eta in zip(self.parameters, before, self.decay, strict=True)
        ]
        return float(torch.stack(change).sum())


def _flat_rows(groups: Sequence[Iterable[Tensor]]) -> Tensor:
    """One row per group of tensors."""
    return torch.stack([flatten(group) for group in groups])
