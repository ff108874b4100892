"""Errors as a user should meet them: one line that says what to do, and an exit code."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import gymnasium as gym
from rich.console import Console

TRAINING, CONFIGURATION = 1, 2


class Failure(Exception):
    """Ends the program with one line.

    Args:
        reason: The line.
        exit_code: 1 if the training failed, 2 if the configuration cannot work.
    """

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code

    def report(self) -> int:
        """Prints the line; returns the exit code."""
        with suppress(OSError):  # as in plain_warnings
            Console(stderr=True, soft_wrap=True).print(f"error: {self}", style="red", markup=False)
        return self.exit_code


@contextmanager
def configuration_errors() -> Iterator[None]:
    """What fails before the training starts is the configuration's fault."""
    try:
        yield
    except gym.error.DependencyNotInstalled as error:
        raise Failure(_which_extra(str(error)), CONFIGURATION) from error
    # Stable-Baselines3 asserts what it requires of spaces and arguments.
    except (ValueError, TypeError, AssertionError, ImportError, OSError, gym.error.Error) as error:
        raise Failure(_one_line(error), CONFIGURATION) from error


@contextmanager
def training_errors(saved: Callable[[], str]) -> Iterator[None]:
    """A number that is none ends the training; other errors are somebody's bug and stay whole.

    Args:
        saved: Says what is left of the run and how to go on; called when there is an error, it may
            save. Every error gets that as its last note.
    """
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        error.add_note(saved())
        if isinstance(error, ValueError):
            raise Failure(_one_line(error), TRAINING) from error
        raise


def plain_warnings() -> None:
    """Prints warnings without the line of code that raised them."""

    def show(message: Warning | str, category: type[Warning], *_: object) -> None:
        with suppress(OSError):  # the terminal is gone, or the disk of a redirection is full
            print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]


def _one_line(error: Exception) -> str:
    notes = getattr(error, "__notes__", [])
    return " ".join("; ".join([str(error) or type(error).__name__, *notes]).split())


def _which_extra(message: str) -> str:
    for package in ("mujoco", "envpool"):
        if package in message.lower():
            return f"{message}; here: pip install .[{package}]"
    if "pygame" in message.lower():
        return f"{message}; here: pip install .[video]"
    return message
