"""What environments do to a run."""

from functools import partial
from pathlib import Path

from faulting import environments as kinds
from faulting.process import CONTINUE, Befallen, Fault

TIMEOUT = 3  # seconds


def raises(kind: type, place: Path) -> Befallen:
    """An exception of the simulator's own, which keeps its traceback."""
    run = Befallen(place, kind)
    said = ["Traceback", "ConnectionError: the simulator", "environment index", CONTINUE]
    run.ends(1, says=said)
    run.go_on()
    return run


def hangs(kind: type, place: Path) -> Befallen:
    """A call that does not return."""
    run = Befallen(place, kind, "--env-timeout", TIMEOUT)
    run.ends(1, says=[f"({run.env}) has not returned", CONTINUE])
    if "in fault" not in (run.run / "stacks.txt").read_text():
        run.wrong.append("stacks.txt does not say where it hangs")
    run.go_on()
    return run


def spoils(kind: type, said: str, place: Path, *words: str) -> Befallen:
    """Something that is no observation or no reward: one line, no traceback."""
    run = Befallen(place, kind, *words)
    run.ends(1, says=[said, "environment", CONTINUE])
    if "Traceback" in run.output:
        run.wrong.append("it printed a traceback")
    run.go_on()
    return run


def normalised(kind: type, said: str, place: Path) -> Befallen:
    """The same, on its way into running averages."""
    return spoils(kind, said, place, "--normalize-obs", "--normalize-reward")


ENDS = "exit code 1, environment and cause named, saved; --resume goes on"
NO_NUMBER, SHAPE = "is not finite", "instead of (4,)"

FAULTS = [
    Fault("an environment raises in step", ENDS, partial(raises, kinds.Raises)),
    Fault("… in reset", ENDS, partial(raises, kinds.RaisesInReset)),
    Fault("… in an evaluation", ENDS, partial(raises, kinds.RaisesInEvaluation)),
    Fault("an environment hangs in step", ENDS, partial(hangs, kinds.Hangs)),
    Fault("… in reset", ENDS, partial(hangs, kinds.HangsInReset)),
    Fault("… in an evaluation", ENDS, partial(hangs, kinds.HangsInEvaluation)),
    Fault("an observation is NaN", ENDS, partial(spoils, kinds.NaNObservation, NO_NUMBER)),
    Fault("a reward is NaN", ENDS, partial(spoils, kinds.NaNReward, NO_NUMBER)),
    Fault("… before a normaliser", ENDS, partial(normalised, kinds.NaNReward, "non-finite")),
    Fault("an observation is longer", ENDS, partial(spoils, kinds.LongerObservation, SHAPE)),
    Fault("an observation is one number", ENDS, partial(spoils, kinds.ShorterObservation, SHAPE)),
]
