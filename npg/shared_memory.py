"""Small messages between the ranks of one machine, through memory that all of them see.

A message of gloo wakes two threads on either side, which takes 0.3 ms and more, however small it
is.
One that is written where the others look is read as soon as they look. An update of a small policy
says dozens of them.
"""

import math
import mmap
import os
import platform
import socket
import tempfile
import time
import zlib
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor

# Bytes of a message: above, gloo's own time is what counts. Ranks: each copies all messages.
CAPACITY, MOST_RANKS = 160_000, 8

_LINE = 64  # bytes that processors pass on as one; ranks do not share one
_HEADER = 2 * _LINE  # of a rank: how many messages it wrote, and how long the last two were
# Looks at the others' counters before sleeping in between, for half a millisecond; the first nap,
# which then grow by a tenth, and the longest, in seconds.
_LOOKS, _NAP, _LONGEST_NAP = 2_000, 5e-5, 2e-3
_PATIENCE = 1.0  # seconds between two questions whether the others live


class Board:
    """Room for two messages of each rank: one is written while others still read the last.

    Args:
        memory: The same for all ranks, at first full of zeros.
        rank: This process's number.
        pids: The process of every rank, in order.
        timeout: Seconds that others are waited for.

    Reference:
        The two alternating buffers are those of sense-reversing barriers: Mellor-Crummey and
        Scott, "Algorithms for scalable synchronization on shared-memory multiprocessors", 1991.
    """

    def __init__(
        self, memory: mmap.mmap, rank: int, pids: list[int], timeout: float = math.inf
    ) -> None:
        size = len(pids)
        bytes_ = torch.frombuffer(memory, dtype=torch.uint8)
        header = bytes_[: size * _HEADER].view(torch.int64).numpy().reshape(size, 2, -1)
        self._written = header[:, 0, 0]  # messages per rank
        self._lengths = header[:, 1, :2]  # in bytes, of the last two
        self._slots = bytes_[size * _HEADER :].view(size, 2, CAPACITY)
        self.rank = rank
        self.pids = pids
        self.timeout = timeout
        self.turn = 0

    def gathered(self, message: Tensor) -> list[Tensor]:
        """Lets every rank have everybody's message; all have to call it, in the same order.

        Args:
            message: On the processor, of the same size on every rank, at most CAPACITY bytes.

        Returns:
            The ranks' messages in order, to be read before this is called again: who has said that
            it wrote the next one lets the others write over these.

        Raises:
            RuntimeError: If the sizes differ, another rank is gone, or does not come in time.
        """
        flat = message.detach().reshape(-1)
        length = flat.numel() * flat.element_size()
        self.turn += 1
        slot = self.turn % 2
        self._slots[self.rank, slot, :length].view(flat.dtype).copy_(flat)
        self._lengths[self.rank, slot] = length
        # Last: x86 processors show their writes in order, so that who sees this sees the message.
        self._written[self.rank] = self.turn
        self._wait()
        if (self._lengths[:, slot] != length).any():
            raise RuntimeError(
                f"ranks sent messages of {self._lengths[:, slot].tolist()} bytes at a time: all "
                "must make the same calls in the same order"
            )
        parts = self._slots[:, slot, :length].unbind()
        return [part.view(flat.dtype).view(message.shape) for part in parts]

    def _wait(self) -> None:
        """Until every rank has written as many messages."""
        looks, nap = 0, _NAP
        asked = begun = 0.0
        for rank in range(len(self.pids)):
            while self._written[rank] < self.turn:
                looks += 1
                if looks < _LOOKS:
                    continue
                time.sleep(nap)
                nap = min(1.1 * nap, _LONGEST_NAP)
                now = time.monotonic()
                begun = begun or now
                asked = asked or now
                if now - begun > self.timeout:
                    raise RuntimeError(f"rank {rank} sent nothing for {now - begun:.0f} s")
                if now - asked < _PATIENCE:
                    continue
                asked = now
                # What it wrote before it went counts.
                if not _alive(self.pids[rank]) and self._written[rank] < self.turn:
                    raise RuntimeError(f"rank {rank} is gone: Connection closed by peer")


def open_board() -> Board | None:
    """Makes a board for the ranks of the present process group, which all have to call this.

    Returns:
        None where ranks do not share a machine of a kind that shows writes in order, are too many,
        have no memory to share, or talk by something else than gloo; the same answer on all.
    """
    timeout = _gloo_timeout()
    if timeout is None:
        return None
    size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    mine = torch.tensor([_machine(), os.getpid()])
    everyone = [torch.zeros_like(mine) for _ in range(size)]
    torch.distributed.all_gather(everyone, mine)
    machines = {int(one[0]) for one in everyone}
    if size > MOST_RANKS or len(machines) > 1 or 0 in machines:
        return None
    pids = [int(one[1]) for one in everyone]
    length = size * (_HEADER + 2 * CAPACITY)
    own = path = _file(length) if rank == 0 else ""
    try:
        name = torch.zeros(4096, dtype=torch.uint8)
        name[: len(path.encode())] = torch.tensor([*path.encode()], dtype=torch.uint8)
        torch.distributed.broadcast(name, 0)
        path = bytes(name.tolist()).rstrip(b"\0").decode()
        memory = _opened(path, length) if path and all(map(_alive, pids)) else None
        seen = torch.tensor([memory is not None], dtype=torch.int64)
        torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MIN)
    finally:
        if own:  # it stays as long as somebody has it open
            Path(own).unlink(missing_ok=True)
    return Board(memory, rank, pids, timeout) if memory is not None and bool(seen) else None


def _gloo_timeout() -> float | None:
    """Seconds that gloo waits for other ranks; None where processors talk by something else."""
    group = torch.distributed.distributed_c10d._get_default_group()
    try:
        backend = group._get_backend(torch.device("cpu"))
    except RuntimeError:  # there is none for processors
        return None
    if backend.name() != "gloo":
        return None
    timeout: float = backend.options._timeout.total_seconds()
    return timeout


def _machine() -> int:
    """A number of this machine since it was started, and of the container, if it is in one.

    Returns:
        0 where there can be no board.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    if platform.machine() not in ("x86_64", "AMD64") or not boot.exists():
        return 0
    processes = os.stat("/proc/self/ns/pid").st_ino
    return zlib.crc32(f"{boot.read_text()} {socket.gethostname()} {processes}".encode()) + 1


def _file(length: int) -> str:
    """A new file of zeros in memory; no name where there is no room."""
    try:
        # Its name cannot be foreseen, and nobody else may read it.
        handle, path = tempfile.mkstemp(
            prefix="npg-",
            dir="/dev/shm",  # nosec B108
        )
    except OSError:
        return ""
    try:
        os.posix_fallocate(handle, 0, length)
    except OSError:
        Path(path).unlink()
        return ""
    finally:
        os.close(handle)
    return path


def _opened(path: str, length: int) -> mmap.mmap | None:
    try:
        with open(path, "r+b") as file:
            return mmap.mmap(file.fileno(), length)
    except (OSError, ValueError):
        return None


def _alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")
