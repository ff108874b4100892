"""Everything that can happen to a run of three days, to short runs of train.py."""

from pathlib import Path

from rich.progress import track

from faulting import environment_faults, machine_faults
from faulting.process import Fault
from faulting.report import Row

FAULTS = [*environment_faults.FAULTS, *machine_faults.FAULTS]


def rows(place: Path, only: str) -> list[Row]:
    """Lets each fault happen.

    Args:
        place: Empty directory to work in.
        only: Part of the names of those that are wanted.

    Returns:
        A row for each.
    """
    chosen = [fault for fault in FAULTS if only in fault.name]
    return [
        _row(fault, place / str(number)) for number, fault in enumerate(track(chosen, "faults"))
    ]


def _row(fault: Fault, place: Path) -> Row:
    place.mkdir()
    seen: list[str] = []
    try:
        run = fault.happen(place)
        seen, wrong = run.seen, run.wrong
    except (
        OSError,
        ValueError,
    ) as error:  # TimeoutError, too: the fault could not be brought about
        wrong = [str(error)]
    return Row(fault.name, fault.promised, "; ".join([*seen, *wrong]), not wrong)
