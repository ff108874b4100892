"""Functions of whole predictions: divergence, score, and a copy outside the graph."""

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from npg.likelihoods.registry import Tensors, likelihood


def joint_kl(p: Distribution, q: Distribution) -> Tensor:
    """KL(p ‖ q) of whole samples, summed over coordinates, computed in float64.

    Near p = q the KL is a small difference of numbers near one: float32 would lose the digits that
    a trust region decides on.

    Args:
        p: Distribution under which the expectation is taken (the old one, in a trust region).
        q: Distribution of the same family and shape.

    Returns:
        Tensor of shape ``batch_shape``, in nats, float64, outside the graph.
    """
    return kl_divergence(detached(p, torch.float64), detached(q, torch.float64))


def detached(distribution: Distribution, dtype: torch.dtype | None = None) -> Distribution:
    """Copies a distribution out of the graph, and out of the parameters' memory.

    A Normal's scale may be a view of a parameter; the copy stays when the parameter moves.

    Args:
        distribution: Any registered distribution.
        dtype: Floating-point type of the copy. Default: unchanged.

    Returns:
        The same family on detached tensors.
    """
    family = likelihood(distribution)
    tensors = tuple(
        tensor.detach().to(dtype=dtype or tensor.dtype, copy=True)
        for tensor in family.tensors(distribution)
    )
    rebuilt: Distribution = family.rebuild(distribution, tensors)
    return rebuilt


def score(distribution: Distribution, value: Tensor) -> Tensors:
    """∇ log p(value) in the distribution's own tensors, one per sample.

    Args:
        distribution: A prediction.
        value: One observed or sampled value per sample.

    Returns:
        Tensors of the shapes of the distribution's parameter tensors, outside the graph.
    """
    scores: Tensors = likelihood(distribution).score(distribution, value)
    return scores
