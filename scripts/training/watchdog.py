"""The end of a run whose environment no longer returns."""

import faulthandler
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FrameType, TracebackType
from typing import Self

from common.failures import TRAINING, Failure
from common.files import tolerated
from stable_baselines3.common.callbacks import BaseCallback

from envs import EnvPoolVecEnv, LeanVecEnv
from training.home import Home

STACKS = "stacks.txt"

# The calls that run an environment's own code.
CALLS: dict[CodeType, str] = {
    getattr(kind, name).__code__: "reset" if name == "reset" else "step"
    for kind in (LeanVecEnv, EnvPoolVecEnv)
    for name in ("reset", "step_wait")
}
LOOKS = 20  # in the time that a call may take


class Watchdog(BaseCallback):
    """Ends the run if one call of the environments takes too long, in training or an evaluation.

    A thread looks now and then at what the main thread is doing, which costs a step nothing. Time
    in which the process was stopped does not count. The thread itself saves and ends the process,
    since the main one cannot be made to. It needs the interpreter: an environment in a C extension
    that never returns and holds Python's lock cannot be seen.

    Use it around the training, as a context and as a callback.

    Args:
        timeout: Seconds that one step or reset of all environments may take; 0 for any.
        home: The run's directory, where the stacks are written.
        env: Name of the environment, for the message.
        rescue: Saves, and says how to go on.
        end: Ends the process.
    """

    def __init__(
        self,
        timeout: float,
        home: Home,
        env: str,
        rescue: Callable[[], str],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        super().__init__()
        self.timeout = timeout
        self.home = home
        self.env = env
        self.rescue = rescue
        self.end = end
        self._watched = threading.get_ident()
        self._over = threading.Event()
        self._ending = threading.Lock()

    def __enter__(self) -> Self:
        self._over.clear()
        if self.timeout:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        # A call that returned after all leads to no update of what is being saved.
        with self._ending:
            pass

    def _watch(self) -> None:
        looks, before = 0, None
        while not self._over.wait(self.timeout / LOOKS):
            call = _call(sys._current_frames()[self._watched])
            looks = looks + 1 if call is before else 0
            before = call
            if call is not None and looks >= LOOKS:
                with self._ending:
                    self._end(call)
                return

    def _end(self, call: FrameType) -> None:
        try:
            self._tell(call)
        finally:  # whatever cannot be written
            for child in multiprocessing.active_children():
                child.kill()
            self.end(TRAINING)

    def _tell(self, call: FrameType) -> None:
        which = "an environment"
        if "index" in call.f_locals:
            which = f"environment {call.f_locals['index']}"
        which += f" of {call.f_locals['self'].num_envs} ({self.env})"
        stacks = self.home.directory / STACKS
        saved = self.rescue()
        with tolerated(stacks), open(stacks, "w") as file:
            faulthandler.dump_traceback(file)
        Failure(
            f"{which} has not returned from {CALLS[call.f_code]} for {self.timeout:g} s, which is "
            f"what --env-timeout allows; where it is: {stacks}; {saved}",
            TRAINING,
        ).report()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()


def _call(frame: FrameType) -> FrameType | None:
    """The call of environments that is going on, if there is one."""
    return next((caller for caller in _callers(frame) if caller.f_code in CALLS), None)


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
