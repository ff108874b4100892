"""K-FAC's F̂ kept up while it trains: statistics and inverses, each when it is due."""

import warnings
from typing import TYPE_CHECKING

from npg.errors import ConfigurationError
from npg.optim.kfac_settings import nothing_captured

if TYPE_CHECKING:
    from npg.optim.kfac import KFAC


def update_curvature(optimizer: "KFAC", damping: float) -> bool:
    """Takes this step's statistics in, and inverts, where either is due.

    Args:
        optimizer: Whose curvature it is.
        damping: λ, to which the L2 term's curvature is added.

    Returns:
        Whether it inverted.

    Raises:
        ConfigurationError: If no statistics were ever captured.
    """
    fisher, extra = optimizer.fisher, optimizer.extra
    if fisher.capture.active:
        try:
            _take_statistics(optimizer)
        finally:
            fisher.clear()
    measured = any(block.updates for block in fisher.blocks)
    if measured:
        _listen_to_the_late(optimizer)
    if not measured and not extra["skipped_statistics"]:
        raise ConfigurationError(nothing_captured(optimizer.likelihood, fisher.kind))
    past = int(extra["steps"]) - optimizer.burn_in
    due = past % optimizer.inverse_interval == 0 or not optimizer.preconditioner.ready
    inverts = measured and due and past >= 0
    if inverts:
        optimizer.preconditioner.refresh(damping + l2_curvature(optimizer))
        _tell_of_unseen(optimizer)
    return inverts


def _listen_to_the_late(optimizer: "KFAC") -> None:
    """Has every step listened to for an interval, once, where a layer came without statistics.

    Layers that take turns, two heads say, may each be called on steps between statistics alone.
    """
    extra = optimizer.extra
    for i, block in enumerate(optimizer.fisher.blocks):
        name = f"late {i}"
        if block.updates or name in extra or all(p.grad is None for p in block.parameters):
            continue
        extra[name] = 1
        extra["listen_until"] = extra["steps"] + 1 + optimizer.statistics_interval


def _tell_of_unseen(optimizer: "KFAC") -> None:
    """Warns of layers that get gradients and were never called: their step is the gradient's."""
    unseen = {
        id(p)
        for block in optimizer.fisher.blocks
        if not block.updates
        for p in block.parameters
        if p.grad is not None
    }
    if unseen - optimizer.told:
        names = [n for n, p in optimizer.model.named_parameters() if id(p) in unseen]
        warnings.warn(
            f"{', '.join(names)} have gradients and no statistics, and move along the bare "
            "gradient: let the forward pass call their layers instead of taking their weights, "
            "and the observed prediction depend on them, or leave them to another optimizer by "
            "parameters=",
            stacklevel=2,
        )
        optimizer.told |= unseen


def l2_curvature(optimizer: "KFAC") -> float:
    """The curvature of the L2 term: a layer may have parameters of several groups."""
    if optimizer.decoupled_weight_decay:
        return 0.0
    return max(float(group["weight_decay"]) for group in optimizer.param_groups)


def _take_statistics(optimizer: "KFAC") -> None:
    """Lets what the last passes left enter the running means, if it is finite."""
    fisher, extra, chain = optimizer.fisher, optimizer.extra, optimizer.chain
    fisher.finish()
    if not (fisher.seen or optimizer.distributed):
        extra["uncaptured"] += 1
        return
    finite = fisher.finite()
    if not any(block.sums for block in fisher.blocks):  # on no rank
        extra["uncaptured"] += 1
    elif finite.device.type == "meta" or bool(finite):
        if chain is not None and not chain.done:
            raise ConfigurationError(
                'inverse="block-tridiagonal" looks at the first prediction: let the model '
                "return a tensor, or call observe(distribution) before backward()"
            )
        optimizer.preconditioner.update(fisher)
    else:
        extra["skipped_statistics"] += 1
