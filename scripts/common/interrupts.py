"""A graceful end on Ctrl-C and SIGTERM."""

import signal
from types import FrameType, TracebackType
from typing import Self


class Interrupts:
    """Turns the first Ctrl-C or SIGTERM into a wish, which the training grants at its next step.

    A second one does what it always does.

    Attributes:
        received: The signal, if there was one.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        self._previous = {name: signal.signal(name, self._receive) for name in self.SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)  # type: ignore[arg-type]
