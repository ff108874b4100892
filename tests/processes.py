"""Work in two processes that ``torch.distributed`` joins."""

import socket
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

# Processes fork from one that has imported these: torch need not be read anew for each.
torch.multiprocessing.set_forkserver_preload(["torch.nn.parallel", "torch.distributed", "pytest"])


def in_two_processes(work, folder: Path) -> list:
    """What ``work(rank)`` returns on rank 0 and on rank 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _joined, (work, port, str(folder)), nprocs=2, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _joined(rank: int, work, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    torch.save(work(rank), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
