"""What K-FAC accepts as settings, and what it says where they cannot work."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from npg.errors import ConfigurationError

# The plain loop's rule where nothing is given: a fixed λ, a step of the whole natural gradient,
# averaged over ten batches, and never further than this KL.
PLAIN_DAMPING = 1e-2
PLAIN_MOMENTUM = 0.9
PLAIN_KL_CLIP = 1e-2


def check_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuses settings that cannot work, whether given at first or changed in a group later.

    Args:
        groups: Parameter groups; of momentum, damping and KL clip the first one's count.

    Raises:
        ConfigurationError: If one is out of its range.
    """
    for group in groups:
        if not 0 <= group["lr"] < math.inf:  # schedules begin and end with 0
            raise ConfigurationError(f"lr must not be negative, got {group['lr']}")
        if not 0 <= group["weight_decay"] < math.inf:
            raise ConfigurationError(
                f"weight_decay must not be negative, got {group['weight_decay']}"
            )
    first = groups[0]
    momentum, damping, clip = first["momentum"], first["damping"], first["kl_clip"]
    if not (momentum is None or momentum == "quadratic" or _within(momentum, 0, 1)):
        raise ConfigurationError(
            f'momentum must be in [0, 1), "quadratic" or None, got {momentum!r}'
        )
    if damping is not None and not 0 < damping < math.inf:
        raise ConfigurationError(
            f"damping must be positive (0.01 is usual), got {damping}; None adapts it"
        )
    if clip is not None and not clip > 0:
        raise ConfigurationError(f"kl_clip must be positive, got {clip}; math.inf never clips")


def _within(value: object, lower: float, upper: float) -> bool:
    return isinstance(value, float | int) and lower <= value < upper


def check_choices(
    fisher: str, inverse: str, eigenbasis: bool, sharing: str, reduction: str, assignment: str
) -> None:
    """Refuses names that are none.

    Args:
        fisher: As for :class:`npg.optim.KFAC`, and so are the others.
        inverse: As there.
        eigenbasis: As there.
        sharing: As there.
        reduction: As there.
        assignment: As there.

    Raises:
        ConfigurationError: If one is unknown, or two exclude each other.
    """
    choices = {
        "fisher": (fisher, ("exact", "sampled", "empirical")),
        "inverse": (inverse, ("block-diagonal", "block-tridiagonal")),
        "sharing": (sharing, ("expand", "reduce")),
        "reduction": (reduction, ("mean", "sum")),
        "assignment": (assignment, ("communication-optimal", "memory-optimal")),
    }
    for name, (given, known) in choices.items():
        if given not in known:
            raise ConfigurationError(f"{name} must be one of {', '.join(known)}, got {given!r}")
    if eigenbasis and inverse == "block-tridiagonal":
        raise ConfigurationError(
            'eigenbasis=True is for inverse="block-diagonal": the chain has no common eigenbasis'
        )


def check_dtype(dtype: torch.dtype | None, *, plain: bool) -> None:
    """Refuses what inverses cannot be kept in.

    Args:
        dtype: As ``inverse_dtype`` of :class:`npg.optim.KFAC`.
        plain: Whether there is an inverse per factor, and nothing else.

    Raises:
        ConfigurationError: If it is another than bfloat16, or there are no such inverses.
    """
    if dtype not in (None, torch.bfloat16):
        raise ConfigurationError(
            f"inverse_dtype must be torch.bfloat16, or None for the parameters' own; got {dtype!r}"
        )
    if dtype is not None and not plain:
        raise ConfigurationError(
            "inverse_dtype is for K-FAC's plain inverse: leave it out with eigenbasis=True and "
            'with inverse="block-tridiagonal"'
        )


def check_intervals(statistics: int, inverse: int, decay: float, burn_in: int) -> None:
    """Refuses intervals that never come.

    Args:
        statistics: Steps from one batch of statistics to the next.
        inverse: Steps from one inversion to the next.
        decay: Weight of the past.
        burn_in: First steps that gather statistics only.

    Raises:
        ConfigurationError: If one is out of its range.
    """
    if statistics < 1 or inverse < 1 or burn_in < 0:
        raise ConfigurationError(
            "statistics_interval and inverse_interval must be at least 1 and burn_in at least 0, "
            f"got {statistics}, {inverse} and {burn_in}"
        )
    if not 0 <= decay < 1:
        raise ConfigurationError(f"statistics_decay must be in [0, 1), got {decay}")


def check_samples(samples: int | None) -> None:
    """Refuses a batch of nothing.

    Args:
        samples: As ``quadratic_samples`` of :class:`npg.optim.KFAC`.

    Raises:
        ConfigurationError: If it is below 1.
    """
    if samples is not None and samples < 1:
        raise ConfigurationError(f"quadratic_samples must be at least 1 or None, got {samples}")


def nothing_captured(likelihood: object, kind: str) -> str:
    """What to say where no statistics were ever captured.

    Args:
        likelihood: What the optimizer was told of the model's output.
        kind: Of Fisher matrix.

    Returns:
        A sentence with the remedies.
    """
    if likelihood is None and kind != "empirical":
        return (
            'K-FAC must know what the model predicts: pass likelihood= ("categorical" for a '
            "cross-entropy), call observe(distribution) before backward(), or choose "
            'fisher="empirical", which takes the gradients of the loss instead'
        )
    if kind == "empirical":
        return (
            "no statistics were captured: the model must run in training mode, with gradients, "
            'before backward(), and have a layer of a known kind: fisher="empirical" takes the '
            'gradients there; other parameters need fisher="sampled" and a likelihood'
        )
    return (
        "no statistics were captured: the model must be called in training mode, with gradients, "
        "before backward(), and return a tensor that reaches the loss; for other outputs call "
        "observe(distribution) before backward()"
    )
