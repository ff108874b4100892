"""The Fisher information matrix of a model's predictive distribution."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from npg.curvature.jacobian import Jacobian
from npg.curvature.matrix import CurvatureMatrix, math_attention
from npg.errors import ConfigurationError
from npg.likelihoods import detached, likelihood, score

FisherKind = Literal["exact", "sampled", "empirical"]


class Fisher(CurvatureMatrix):
    """F = mean over samples of Jᵀ F_out J, with J the Jacobian of the distribution's tensors.

    The matrix is that of the moment it was made: the prediction is evaluated once, and labels, if
    any, are drawn once, so that products of one object always belong to one matrix.

    Args:
        model: Module whose parameters the matrix is over, or the parameters.
        prediction: Callable that runs the model and returns its Distribution, one sample per
            element of ``batch_shape``; or such a Distribution whose graph is still there.
        kind: ``"exact"``: F_out = E[s sᵀ] in closed form, s the score of a label of the model's
            own. ``"sampled"``: one label per sample drawn from the model; unbiased, and cheaper
            only where no closed form is known. ``"empirical"``: scores at ``targets``; it is not
            the Fisher (its mean is not that of the model), but it is what many codes call so.
        targets: Labels for ``kind="empirical"``, one per sample.
        weights: Weight per sample, of shape ``batch_shape``; zeros mask padding or ignored
            labels. The mean is Σ w F / Σ w. Default: all equal.
        parameters: Restricts the matrix to a part of the model.
        generator: Source of the labels for ``kind="sampled"``. Default: torch's global one.
        rows: Restricts the mean to the first so many entries of the prediction's first batch
            dimension, for a cheaper estimate; it takes no ``targets`` and ``weights``. Default:
            all.

    Raises:
        ConfigurationError: If the arguments do not fit together, or the prediction is not
            a registered distribution that depends on the parameters.

    Reference:
        Martens, "New insights and perspectives on the natural gradient method", 2020, sections
        5, 8 and 11.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor],
        prediction: Callable[[], Distribution] | Distribution,
        *,
        kind: FisherKind = "exact",
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        parameters: Iterable[Tensor] | None = None,
        generator: torch.Generator | None = None,
        rows: int | None = None,
    ) -> None:
        super().__init__(model, parameters)
        if kind not in ("exact", "sampled", "empirical"):
            raise ConfigurationError(f"kind must be exact, sampled or empirical, got {kind!r}")
        if (kind == "empirical") != (targets is not None):
            raise ConfigurationError(
                f'targets= goes with kind="empirical" and only there, got kind={kind!r} '
                f"{'without' if targets is None else 'with'} targets"
            )
        if not isinstance(prediction, Distribution):
            with torch.enable_grad(), math_attention():
                prediction = prediction()
        self.family = likelihood(prediction)
        outputs = self.family.tensors(prediction)
        if rows is not None and (targets is not None or weights is not None):
            raise ConfigurationError("rows= is not for targets= and weights=: cut these as well")
        if rows is not None and not 0 < rows <= len(outputs[0]):
            raise ConfigurationError(f"rows= must be in [1, {len(outputs[0])}], got {rows}")
        self.jacobian = Jacobian(outputs, self.parameters, rows)
        self.prediction: Distribution = detached(
            prediction
            if rows is None
            else self.family.rebuild(prediction, tuple(o[:rows] for o in outputs))
        )
        self.scores: tuple[Tensor, ...] | None = None
        if kind == "sampled":
            targets = self.family.sample(self.prediction, generator)
        if targets is not None:
            self.scores = score(self.prediction, targets)
        self._batch_shape = self.prediction.batch_shape
        self.weights = _normalised(weights, self._batch_shape, outputs[0])

    def output_product(self, tangents: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """Multiplies tangents of the distribution's tensors by each sample's F_out.

        Args:
            tangents: One per parameter tensor of the distribution, of its shape.

        Returns:
            Cotangents of the same shapes, each sample already multiplied by its weight in the
            mean.
        """
        tangents = tuple(tangents)
        if self.scores is None:
            products = self.family.fisher_product(self.prediction, tangents)
        else:
            terms = [
                (s * t).reshape(*self._batch_shape, -1).sum(-1)
                for s, t in zip(self.scores, tangents, strict=True)
            ]
            inner = torch.stack(terms).sum(0)
            products = tuple(s * _expand(inner, s) for s in self.scores)
        if isinstance(self.weights, float):
            return tuple(product.mul(self.weights) for product in products)
        return tuple(product * _expand(self.weights, product) for product in products)

    def matvec(self, vector: Tensor) -> Tensor:
        """Returns F v for a flat v [P]."""
        return self.jacobian.vjp(self.output_product(self.jacobian.jvp(vector)))


def _expand(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.reshape(per_sample.shape + (1,) * (like.ndim - per_sample.ndim))


def _normalised(weights: Tensor | None, batch_shape: torch.Size, like: Tensor) -> Tensor | float:
    if batch_shape.numel() == 0:
        raise ConfigurationError("the prediction has no samples: batch_shape is empty")
    if weights is None:
        return 1.0 / batch_shape.numel()
    if weights.shape != batch_shape:
        raise ConfigurationError(
            f"weights must have one entry per sample, shape {tuple(batch_shape)}, "
            f"got {tuple(weights.shape)}"
        )
    weights = weights.to(like)  # a mask may be bool, and NumPy's weights are float64
    total = weights.sum()
    if not bool(total > 0) or bool((weights < 0).any()):
        raise ConfigurationError("weights must not be negative, and not all zero")
    return weights / total
