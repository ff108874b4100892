"""Means over the ranks of ``torch.distributed``, each of which sees a part of the batch.

Every rank holds the same parameters. A loss that is a mean over samples is the mean of the ranks'
losses, and so are its gradient and its curvature's products, if all parts are of one size; where
they differ, every rank counts alike, as in DistributedDataParallel. All of these are collective:
every rank has to call them, in the same order, and every one gets the same bits back.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch
import torch.distributed
from torch import Tensor

from npg.errors import NumericalError
from npg.shared_memory import CAPACITY, Board, open_board

# Between few ranks small messages take one hop to all others, where a reduction takes two or more.
FEW, SMALL = 8, 20_000

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Lets this process be its own, though a process group is there.

    Agents train together wherever there is a group. For one of them to be trained on one rank, or
    another one on each, make it and call ``learn`` inside of this.

    Yields:
        Nothing.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def count() -> int:
    """Number of ranks; 1 where there is no process group."""
    if _ALONE.get():
        return 1
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if joined else 1


def index() -> int:
    """This rank, from 0; 0 where there is no process group."""
    return torch.distributed.get_rank() if count() > 1 else 0


def average_(tensors: Sequence[Tensor], weight: float = 1.0) -> None:
    """Replaces tensors by their means over the ranks, in one call of the network.

    Args:
        tensors: Of the same shapes on every rank.
        weight: What this rank's count in the mean: 1 where all see equally many samples, and in
            general this rank's share of them times the number of ranks.
    """
    if count() == 1 or not tensors:
        return
    with torch.no_grad():
        flat = torch.cat([t.reshape(-1) for t in tensors])
        flat.mul_(weight) if weight else flat.zero_()  # of no samples means are NaN
        # Divided at the end, so that the mean of equal whole numbers is this number.
        pieces = (summed(flat) / count()).split([t.numel() for t in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the ranks.

    Args:
        tensor: Of the same shape on every rank; it may be overwritten.

    Returns:
        The sum, on the same device; the tensor itself where there is one rank.
    """
    if count() == 1:
        return tensor
    sent = _reachable(tensor)
    if count() <= FEW and sent.numel() <= SMALL:
        parts = _everyones(sent)
        return sum(parts[1:], parts[0]).to(tensor.device)  # in the same order on every rank
    torch.distributed.all_reduce(sent)
    return sent.to(tensor.device)


def sum_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Adds tensors up over all ranks, in one call.

    Args:
        tensors: Of the same shapes on every rank.

    Returns:
        The sums, the same on every rank.
    """
    if not tensors:
        return []
    pieces = summed(torch.cat([tensor.reshape(-1) for tensor in tensors])).split(
        [tensor.numel() for tensor in tensors]
    )
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


def mean_over_ranks(
    tensors: Sequence[Tensor | None], like: Sequence[Tensor]
) -> list[Tensor | None]:
    """Averages tensors over all ranks, in one call.

    Args:
        tensors: The same number on every rank; None counts as zero.
        like: Their shapes.

    Returns:
        The means, the same on every rank; None where no rank had anything.
    """
    given = [
        torch.zeros_like(t) if tensor is None else tensor.detach()
        for tensor, t in zip(tensors, like, strict=True)
    ]
    present = given[0].new_tensor([float(tensor is not None) for tensor in tensors])
    *sums, found = sum_over_ranks([*given, present])
    return [
        total.to(t.dtype) / count() if anywhere else None
        for total, t, anywhere in zip(sums, like, found.real.tolist(), strict=True)
    ]


def averages(numbers: Iterable[float], weight: float = 1.0) -> list[float]:
    """Means of numbers over the ranks, in float64.

    Args:
        numbers: As many on every rank.
        weight: As for :func:`average_`.

    Returns:
        The means, in order; the numbers themselves where there is one rank.
    """
    numbers = list(numbers)
    if count() == 1:
        return numbers
    vector = torch.tensor(numbers, dtype=torch.float64)
    average_([vector], weight)
    means: list[float] = vector.tolist()
    return means


def average(number: float, weight: float = 1.0) -> float:
    """The mean of one number over the ranks; see :func:`averages`."""
    return averages([number], weight)[0]


def any_rank(condition: bool) -> bool:
    """Whether a condition holds on some rank."""
    return condition if count() == 1 else average(float(condition)) > 0


def mean_loss(loss: Tensor) -> Tensor:
    """The mean of a loss over the ranks.

    Its gradient is left to be that of this rank's part, so that what is computed from it (the
    gradient by all parameters, products) is averaged once, when it is whole.

    Args:
        loss: Scalar, with its graph or without.

    Returns:
        The mean, with the graph of this rank's loss.
    """
    if count() == 1:
        return loss
    mean = loss.detach().clone()
    average_([mean])
    with torch.enable_grad():
        # The same bits on every rank: the difference is zero, also where the loss is infinite.
        return mean + torch.nan_to_num(loss - loss.detach())


def share_(tensors: Iterable[Tensor]) -> None:
    """Replaces tensors by those of rank 0.

    Args:
        tensors: Of the same shapes on every rank; in place.
    """
    if count() == 1:
        return
    for tensor in tensors:
        sent = _reachable(tensor.detach().contiguous())
        torch.distributed.broadcast(sent, 0)
        tensor.detach().copy_(sent)


def check_equal(tensors: Iterable[Tensor], what: str) -> None:
    """Makes sure that the ranks still hold the same numbers.

    Args:
        tensors: That should be equal on all ranks.
        what: They are, for the error.

    Raises:
        NumericalError: If the sums of a tensor differ.
    """
    if count() == 1:
        return
    total = _reachable(torch.stack([t.detach().double().sum() for t in tensors]))
    parts = torch.stack(_everyones(total))
    alike = (parts == parts[0]) | (parts.isnan() & parts[0].isnan())
    if not bool(alike.all()):
        raise NumericalError(
            f"the ranks' {what} have drifted apart: every rank must take the same steps, on "
            "processors and libraries of one kind, and callbacks must change them on all alike"
        )


def _reachable(tensor: Tensor) -> Tensor:
    """A tensor where the backend can send it."""
    on_host = tensor.device.type == "cpu" and torch.distributed.get_backend() == "nccl"
    return tensor.cuda() if on_host else tensor


def _everyones(sent: Tensor) -> list[Tensor]:
    """The tensors of all ranks, in order, to be read before anything else is sent."""
    if sent.device.type == "cpu" and sent.numel() * sent.element_size() <= CAPACITY:
        board = _board(torch.distributed.group.WORLD)
        if board is not None:
            return board.gathered(sent)
    parts = [torch.empty_like(sent) for _ in range(count())]
    torch.distributed.all_gather(parts, sent.contiguous())
    return parts


@lru_cache(maxsize=1)
def _board(group: object) -> Board | None:
    """The board of a process group; another group gets another."""
    return open_board()
