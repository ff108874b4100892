"""Work in two processes, as torchrun would start them."""

import os
import socket
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

# Processes fork from one that has imported these: torch need not be read anew for each.
torch.multiprocessing.set_forkserver_preload(["torch.nn.parallel", "torch.distributed", "pytest"])


def in_two_processes(work, folder: Path) -> list:
    """What ``work(rank)`` returns on rank 0 and on rank 1 of a process group."""
    return _started(_joined, work, folder)


def as_torchrun_starts(work, folder: Path) -> list:
    """The same where ``work`` joins the group itself, of which the environment tells."""
    return _started(_alone, work, folder)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _started(start, work, folder: Path) -> list:
    torch.multiprocessing.start_processes(
        start, (work, free_port(), str(folder)), nprocs=2, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _alone(rank: int, work, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(work(rank), f"{folder}/{rank}.pt")


def _joined(rank: int, work, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    torch.save(work(rank), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
