"""Messages through memory: what arrives, what is told of ranks that differ or are gone."""

import math
import mmap
import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from npg import ranks, shared_memory
from npg.errors import NumericalError
from npg.shared_memory import CAPACITY, Board, open_board
from tests.processes import in_two_processes

MESSAGES = [
    torch.arange(5.0),
    torch.tensor([1.5, -2.0], dtype=torch.float64),
    torch.tensor([[True, False], [False, False]]),
    torch.arange(6, dtype=torch.int64).view(2, 3).T,
    torch.tensor(2 + 3j, dtype=torch.complex128),
    torch.arange(3, dtype=torch.bfloat16),
    torch.zeros(0),
    torch.full((CAPACITY // 8,), 0.5, dtype=torch.float64),
]


def boards(size=2, timeout=60.0):
    """Boards of several ranks in one process, whose number they all have."""
    memory = mmap.mmap(-1, size * (128 + 2 * CAPACITY))
    return [Board(memory, rank, [os.getpid()] * size, timeout) for rank in range(size)]


def together(*calls):
    """What calls return that wait for each other; an error instead, where one raises."""
    found = [None] * len(calls)

    def call(i):
        try:
            found[i] = calls[i]()
        except RuntimeError as error:
            found[i] = error

    threads = [threading.Thread(target=call, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


class TestBoard:
    @pytest.mark.parametrize("message", MESSAGES, ids=lambda m: f"{m.dtype} {tuple(m.shape)}")
    def test_everybody_gets_every_message(self, message):
        def saying(board):
            own = message.clone() if board.rank == 0 else torch.ones_like(message)
            return [part.clone() for part in board.gathered(own)]

        one, other = boards()
        for found in together(lambda: saying(one), lambda: saying(other)):
            for part, expected in zip(found, (message, torch.ones_like(message)), strict=True):
                assert part.dtype == message.dtype
                assert torch.equal(part, expected)

    def test_a_rank_that_is_ahead_does_not_overwrite(self):
        """The last message may still be read while the next is written, of any length."""
        three = boards(3)

        def saying(board):
            heard = []
            for turn in range(200):
                if (turn + board.rank) % 3 == 0:
                    time.sleep(1e-4)
                parts = board.gathered(torch.full((turn % 7 + 1,), 1000.0 * board.rank + turn))
                if turn % 3 == board.rank:  # reads late, when others may have written on
                    time.sleep(2e-4)
                heard.append([float(part.sum()) for part in parts])
            return heard

        expected = [
            [(turn % 7 + 1) * (1000.0 * rank + turn) for rank in range(3)] for turn in range(200)
        ]
        for heard in together(*[lambda b=b: saying(b) for b in three]):
            assert heard == expected

    def test_other_sizes_are_told(self):
        one, other = boards()
        errors = together(
            lambda: one.gathered(torch.ones(2).bool()), lambda: other.gathered(torch.ones(3).bool())
        )
        assert all("messages of [2, 3] bytes" in str(error) for error in errors)

    def test_a_rank_that_has_ended_is_told(self, monkeypatch):
        monkeypatch.setattr(shared_memory, "_PATIENCE", 0.02)
        ended = torch.multiprocessing.get_context("fork").Process(target=int)
        ended.start()
        ended.join()
        memory = mmap.mmap(-1, 2 * (128 + 2 * CAPACITY))
        board = Board(memory, 0, [os.getpid(), ended.pid])
        with pytest.raises(RuntimeError, match="rank 1 is gone: Connection closed by peer"):
            board.gathered(torch.zeros(1))

    def test_a_rank_that_does_not_come_is_told(self):
        with pytest.raises(RuntimeError, match="rank 1 sent nothing for 0 s"):
            boards(timeout=0.05)[0].gathered(torch.zeros(1))

    def test_waiting_costs_little(self):
        begun = time.process_time()
        with pytest.raises(RuntimeError):
            boards(timeout=1.0)[0].gathered(torch.zeros(1))
        assert time.process_time() - begun < 0.3

    def test_signals_are_heard_while_it_waits(self):
        class Stop(Exception):
            pass

        def stop(*_):
            raise Stop

        before = signal.signal(signal.SIGALRM, stop)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Stop):
                boards()[0].gathered(torch.zeros(1))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_processes_that_have_ended_are_not_alive():
    child = os.fork()
    if child == 0:
        os._exit(0)
    deadline = time.monotonic() + 10
    while shared_memory._alive(child) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not shared_memory._alive(child)  # a zombie
    os.waitpid(child, 0)
    assert not shared_memory._alive(child)  # nothing
    assert shared_memory._alive(os.getpid())


def _process(rank: int) -> dict:
    made, file = [], shared_memory._file

    def noted(length):
        made.append(file(length))
        return made[-1]

    shared_memory._file = noted
    found = {"open": isinstance(ranks._board(torch.distributed.group.WORLD), Board)}
    torch.distributed.barrier()
    found["made"], found["left"] = len(made), [path for path in made if os.path.exists(path)]
    summed = torch.distributed.all_gather
    calls = []

    def counting(*arguments):
        calls.append(1)
        return summed(*arguments)

    torch.distributed.all_gather = counting
    found["sum"] = ranks.summed(torch.tensor([1.0, 2.0]) * (rank + 1))
    ranks.check_equal([torch.ones(3)], "numbers")
    found["by gloo"] = len(calls)
    found["large"] = ranks.summed(torch.full((ranks.SMALL + 1,), rank + 1.0))[-1]
    found["wide"] = ranks.summed(torch.full((ranks.SMALL,), rank + 1j, dtype=torch.complex128))[-1]
    torch.distributed.all_gather = summed
    found["mean loss"] = ranks.mean_loss(torch.tensor(math.inf if rank == 0 else 1.0))
    nan = math.nan
    told = {
        "equal": [[1.0, nan], [1.0, nan]],
        "other": [[1.0], [2.0]],
        "nan of one": [[0.0], [nan]],
        "inf of one": [[1.0], [math.inf]],
    }
    found["told"] = []
    for name, values in told.items():
        try:
            ranks.check_equal([torch.tensor(values[rank])[i] for i in range(len(values[0]))], name)
        except NumericalError:
            found["told"].append(name)
    found["timeout"] = ranks._board(torch.distributed.group.WORLD).timeout

    # Where one rank cannot, none does.
    if rank == 1:
        shared_memory._opened = lambda *_: None
    found["not open"] = open_board()
    return found


@pytest.mark.skipif(not shared_memory._machine(), reason="for processors that write in order")
def test_ranks_of_one_machine_have_one(tmp_path):
    for rank, found in enumerate(in_two_processes(_process, tmp_path)):
        assert found["open"]
        assert found["made"] == (rank == 0)
        assert found["left"] == []
        assert torch.equal(found["sum"], torch.tensor([3.0, 6.0]))
        assert found["by gloo"] == 0
        assert found["large"] == 3
        assert found["wide"] == 1 + 2j
        assert found["not open"] is None
        assert found["mean loss"] == math.inf
        assert found["told"] == ["other", "nan of one", "inf of one"]
        assert found["timeout"] == 30 * 60


@pytest.mark.parametrize("place", ["/nowhere", "/dev/full"])
def test_without_room_there_is_none(place, monkeypatch):
    monkeypatch.setattr(shared_memory.tempfile, "mkstemp", _in(place))
    assert shared_memory._file(100) == ""
    assert shared_memory._opened("/nowhere/at/all", 100) is None


def _in(place):
    def mkstemp(prefix, dir):
        raise OSError(28, "No space left on device", place)

    return mkstemp
