"""The processes that torchrun starts together and that train as one: its ranks."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from common.failures import TRAINING, Failure
from npg.errors import ConfigurationError

Value = TypeVar("Value")

# How gloo tells that the other side has ended.
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: Its number, from 0; rank 0 logs, prints and saves.
        size: How many there are; 1 is a process that was started without torchrun.
        local_rank: Its number among those on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this one logs, prints and saves."""
        return self.rank == 0

    def shared(self, value: Value) -> Value:
        """Returns what rank 0 gave; anything that can be pickled."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, device=torch.device("cpu"))
        return values[0]

    def largest(self, *values: float) -> list[float]:
        """Returns, number by number, the largest that a rank gave."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def total(self, *values: float) -> list[float]:
        """Returns, number by number, the sum of what the ranks gave."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def joined(self, own: torch.Tensor, length: int) -> torch.Tensor:
        """Returns what ranks computed of their shares of so many rows, by ``tensor_split``."""
        if self.size == 1:
            return own
        whole = own.new_zeros(length, *own.shape[1:])
        whole.tensor_split(self.size)[self.rank].copy_(own)
        dist.all_reduce(whole)
        return whole

    def _reduced(
        self, values: tuple[float, ...], operation: dist.ReduceOp.RedOpType
    ) -> list[float]:
        reduced = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(reduced, operation)
        return reduced.tolist()

    @contextmanager
    def one_voice(self) -> Iterator[None]:
        """Lets rank 0 alone print, for what all ranks would print alike; exceptions stay."""
        if self.is_main:
            yield
            return
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield


ALONE = Ranks()


def launched() -> Ranks:
    """Returns what the environment says, before :func:`join` has been called."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        return Ranks()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Ranks(rank, size, int(os.environ.get("LOCAL_RANK", str(rank))))


@contextmanager
def join(device: str = "auto") -> Iterator[Ranks]:
    """Joins the ranks that torchrun has started, and leaves them at the end.

    Without torchrun this is one process, and nothing happens. Processors talk by gloo, graphics
    cards by nccl, of which each rank takes one. If a rank fails, the first to do so says why, and
    the others end without a word: their errors would be that somebody has gone.

    Args:
        device: Where to train: "cpu", "cuda" or "auto", which is cuda where there is one.

    Yields:
        This process's place.

    Raises:
        ConfigurationError: If a rank finds no graphics card of its own.
        Failure: If another rank was killed.
        SystemExit: If another rank failed first.
    """
    ranks = launched()
    if ranks.size == 1:
        yield ranks
        return
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        _take_card(ranks)
    if not ranks.is_main:
        warnings.simplefilter("ignore")  # rank 0 gives the same ones
    store, rank, size = next(dist.rendezvous("env://"))
    # torchrun's store outlives a restart, and the addresses of processes that are gone are in it.
    store = dist.PrefixStore(f"npg/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield ranks
    except SystemExit:
        raise
    except BaseException as error:
        # The group is left as it is: nccl would wait for the others to leave it, too.
        if not _is_first(store):
            sys.exit(TRAINING)
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in GONE):
            raise Failure(
                "another rank has gone: it was killed, or is out of reach", TRAINING
            ) from error
        raise
    else:
        dist.destroy_process_group()


def _take_card(ranks: Ranks) -> None:
    """Gives each rank of a machine a graphics card of its own."""
    cards = torch.cuda.device_count()
    if ranks.local_rank >= cards:
        raise ConfigurationError(
            f"this machine has {cards} graphics cards, and rank {ranks.rank} would need number "
            f"{ranks.local_rank}: give torchrun --nproc-per-node {max(cards, 1)}, or --device cpu"
        )
    torch.cuda.set_device(ranks.local_rank)


def _is_first(store: dist.Store) -> bool:
    """Whether no rank has failed before this one; if the store has gone, nobody can tell."""
    try:
        return store.add(f"failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (RuntimeError, OSError):
        return True
