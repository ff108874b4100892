"""Trial points of a line search, and the minima of polynomials through them."""

import math
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Point:
    """A point of a function φ on a line.

    Attributes:
        step: α.
        value: φ(α).
        slope: φ′(α).
    """

    step: float
    value: float
    slope: float

    def tilted(self, slope: float) -> "Point":
        """The same point of φ(α) − slope · α."""
        return Point(self.step, self.value - slope * self.step, self.slope - slope)


P = TypeVar("P", bound=Point)


def cubic_minimum(a: Point, b: Point) -> float:
    """Where the cubic through values and slopes of two points has its minimum; nan if nowhere."""
    width = b.step - a.step
    d = a.slope + b.slope - 3 * (b.value - a.value) / width
    size = max(abs(d), abs(a.slope), abs(b.slope))
    if size == 0 or not math.isfinite(size):
        return math.nan
    under_root = (d / size) ** 2 - (a.slope / size) * (b.slope / size)
    if under_root < 0:
        return math.nan
    root = math.copysign(size * math.sqrt(under_root), width)
    denominator = b.slope - a.slope + 2 * root
    return b.step - width * (b.slope + root - d) / denominator if denominator else math.nan


def parabola_minimum(a: Point, b: Point) -> float:
    """The same of the parabola through both values and the first slope."""
    width = b.step - a.step
    bend = a.slope - (b.value - a.value) / width
    return a.step + 0.5 * a.slope / bend * width if bend else math.nan


def secant_minimum(a: Point, b: Point) -> float:
    """The same of a parabola that has both slopes."""
    bend = b.slope - a.slope
    return b.step - b.slope / bend * (b.step - a.step) if bend else math.nan


def next_step(
    low: P,
    high: P | None,
    trial: P,
    tilt: float,
    reach: tuple[float, float],
    rounding: float = 0.0,
) -> tuple[P, P | None, float]:
    """Takes a trial into the interval that holds a minimum, and says where to try next.

    Args:
        low: Trial with the least value so far, which descends towards the other end.
        high: The other end; None while the interval is not bounded.
        trial: New trial.
        tilt: Slope of the line that is taken off φ.
        reach: Steps between which the next one is, while the interval is not bounded.
        rounding: By how much a value may be wrong: where the slopes say that low's and trial's
            differ by less, they say which is lower.

    Returns:
        The new ends, and the next step.
    """
    a, b = low.tilted(tilt), trial.tilted(tilt)
    change = 0.5 * (a.slope + b.slope) * (b.step - a.step)
    if max(abs(b.value - a.value), abs(change)) <= rounding:
        b = Point(b.step, a.value + change, b.slope)
    cubic, secant = cubic_minimum(a, b), secant_minimum(a, b)
    if b.value > a.value:  # a minimum lies between them, nearer to the lower one
        parabola = parabola_minimum(a, b)
        nearer = abs(cubic - a.step) < abs(parabola - a.step)
        step = cubic if nearer else parabola + 0.5 * (cubic - parabola)
        return low, trial, _or_middle(step, low, trial)
    if a.slope * b.slope < 0:  # between them, too, since φ rises again
        step = max(cubic, secant, key=lambda s: abs(s - b.step))
        return trial, low, _or_middle(step, trial, low)
    end = reach[1] if high is None else high.step
    if abs(b.slope) < abs(a.slope):  # further on, where the slope will have vanished
        beyond = math.isfinite(cubic) and (cubic - b.step) * (b.step - a.step) > 0
        ahead = cubic if beyond else end
        if high is None:
            step = max(ahead, secant, key=lambda s: abs(s - b.step))
            return trial, None, min(max(step, reach[0]), reach[1])
        step = min(ahead, secant, key=lambda s: abs(s - b.step))
        limit = b.step + 0.66 * (high.step - b.step)
        step = min(step, limit) if b.step > a.step else max(step, limit)
        return trial, high, _or_middle(step, trial, high)
    step = end if high is None else cubic_minimum(high.tilted(tilt), b)
    return trial, high, step if high is None else _or_middle(step, trial, high)


def _or_middle(step: float, a: Point, b: Point) -> float:
    """The step, if it is inside the interval."""
    inside = min(a.step, b.step) <= step <= max(a.step, b.step)
    return step if inside else 0.5 * (a.step + b.step)
