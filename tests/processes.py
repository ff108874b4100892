"""Work in two processes, as torchrun would start them."""

import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

# Processes fork from one that has imported these: torch need not be read anew for each.
torch.multiprocessing.set_forkserver_preload(["torch.nn.parallel", "torch.distributed", "pytest"])


def in_two_processes(work, folder: Path) -> list:
    """What ``work(rank)`` returns on rank 0 and on rank 1 of a process group."""
    with tempfile.TemporaryDirectory() as directory:  # a free port may be taken before it is used
        return _started(_joined, work, (Path(directory) / "meeting").as_uri(), folder)


def as_torchrun_starts(work, folder: Path, times: int) -> list:
    """What ``work(rank, ports)`` returns, which joins a group itself, so many times.

    The environment tells of it but for MASTER_PORT: each time another of the ports, where this
    process holds the store, as torchrun does.
    """
    stores = [
        torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for _ in range(times)
    ]
    return _started(_alone, work, [store.port for store in stores], folder)


def run_as_rank(main, arguments, port: int) -> tuple[int | str, str, str]:
    """What a script's ``main`` returned in a group at a port, what it printed, and its errors.

    In the place of what was returned stands how it ended otherwise: by SystemExit, or by
    :func:`fail`.
    """
    os.environ["MASTER_PORT"] = str(port)
    error, output = StringIO(), StringIO()
    with redirect_stderr(error), redirect_stdout(output):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = f"ended {end.code}"
        except ZeroDivisionError as raised:
            code = str(raised)
    return code, output.getvalue(), error.getvalue()


def fail() -> None:
    """What no script expects."""
    raise ZeroDivisionError("a bug on rank 1")


def _started(start, work, meeting: str | list[int], folder: Path) -> list:
    torch.multiprocessing.start_processes(
        start, (work, meeting, str(folder)), nprocs=2, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _alone(rank: int, work, ports: list[int], folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.save(work(rank, ports), f"{folder}/{rank}.pt")


def _joined(rank: int, work, meeting: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=2)
    torch.save(work(rank), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
