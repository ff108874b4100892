"""The Gauss–Newton–Bartlett diagonal, gathered while a model trains."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributions import Distribution

from npg.curvature.drawn import check_observed, drawn_score, propagated
from npg.curvature.kronecker.capture import Capture, Pass
from npg.errors import ConfigurationError
from npg.likelihoods import as_distribution, likelihood


class BartlettDiagonal:
    """B ĝ ⊙ ĝ, ĝ the mean gradient of −log p at B labels that the model draws: diag(F), unbiased.

    Scores at one's own labels are independent and have mean 0, so that the square of their sum is
    an estimate of the sum of their squares. At the true labels it would be none.

    Args:
        model: Whose outputs to listen to; a DistributedDataParallel wrapper is looked through.
        parameters: Of which the diagonal is. Frozen ones are left out.
        family: How the output parametrises the prediction, see
            :func:`npg.likelihoods.as_distribution`; None where :meth:`observe` is called.
        generator: Draws the labels. Default: torch's own.

    Attributes:
        seen: Samples measured since the last :meth:`take`.

    Reference:
        Liu et al., "Sophia: a scalable stochastic second-order optimizer for language model
        pre-training", 2023, section 2.3.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Iterable[Tensor],
        *,
        family: str | Callable[[Tensor], Distribution] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.distributed = isinstance(model, nn.parallel.DistributedDataParallel)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.model: nn.Module = model
        self.parameters = list(parameters)
        self.family = family
        self.generator = generator
        self.listen()

    def listen(self) -> None:
        """Hooks the model; a copy must begin anew with its own."""
        self.clear()
        receiver = None if self.family is None else self._at_output
        self.capture = Capture(self.model, (), on_output=receiver)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the hooks and what they caught."""
        return {**self.__dict__, "capture": None, "_totals": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores, and listens."""
        self.__dict__.update(state)
        self.listen()

    def clear(self) -> None:
        """Forgets what was measured."""
        self.seen = 0
        self._totals: dict[Tensor, Tensor] = {}

    def observe(self, prediction: Distribution, mask: Tensor | None = None) -> None:
        """Measures from a prediction of what the model just computed; its graph is kept.

        Args:
            prediction: One sample per element of ``batch_shape``.
            mask: Which samples count, bool of shape ``batch_shape``. Default: all.

        Raises:
            ConfigurationError: If it has no graph, or the mask does not fit.
        """
        if self.capture.active:
            check_observed(prediction, mask)
            self._measure(prediction, mask)

    def _at_output(self, noted: Pass, output: Tensor) -> None:
        """Measures when the user's backward pass reaches the model's output."""
        with torch.enable_grad():
            prediction = as_distribution(output, self.family)
        self._measure(prediction, None)

    def _measure(self, prediction: Distribution, mask: Tensor | None) -> None:
        """Adds Σ ∇ log p at labels of the prediction's own, per parameter."""
        tensors = likelihood(prediction).tensors(prediction)
        outputs, seeds = propagated(tensors, drawn_score(prediction, self.generator), mask)
        wanted = [p for p in self.parameters if p.requires_grad]
        with self.capture.suspended():
            scores = torch.autograd.grad(
                outputs, wanted, seeds, retain_graph=True, allow_unused=True
            )
        for parameter, score in zip(wanted, scores, strict=True):
            if score is not None:
                total = self._totals.get(parameter)
                self._totals[parameter] = score if total is None else total + score
        self.seen += prediction.batch_shape.numel() if mask is None else int(mask.sum())

    def take(self) -> dict[Tensor, Tensor]:
        """Ends a batch, of as many backward passes as there were.

        Returns:
            The diagonal, by parameter; of a complex one, that of its two parts. Parameters that no
            prediction depended on are missing.

        Raises:
            ConfigurationError: If nothing was measured.
        """
        if not self.seen:
            raise ConfigurationError("nothing was measured")
        samples, totals = self.seen, self._totals
        if self.distributed:
            samples, totals = self._over_ranks(samples, totals)
        self.clear()
        return {p: _squared(total) / samples for p, total in totals.items()}

    def _over_ranks(
        self, samples: int, totals: dict[Tensor, Tensor]
    ) -> tuple[int, dict[Tensor, Tensor]]:
        """Sums over all ranks, which are here together; what a rank did not see counts as zero."""
        wanted = [p for p in self.parameters if p.requires_grad]
        sums = [totals[p] if p in totals else torch.zeros_like(p) for p in wanted]
        count = wanted[0].new_full((1,), float(samples), dtype=torch.float64)
        for tensor in (*sums, count):
            torch.distributed.all_reduce(tensor)
        return int(count), dict(zip(wanted, sums, strict=True))


def _squared(total: Tensor) -> Tensor:
    if total.is_complex():
        return torch.view_as_complex(torch.view_as_real(total).square())
    return total.square()
