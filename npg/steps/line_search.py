"""Line searches: how far to go where a direction is given and every trial costs an evaluation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from npg.errors import ConfigurationError
from npg.steps.interpolation import Point, next_step

P = TypeVar("P", bound=Point)

# Where nothing is known of the curvature yet a trial goes at most so many times further.
EXTRAPOLATION = 4.0
# From a trial whose value is no finite number back towards the best one.
RETREAT = 0.1


@dataclass(frozen=True)
class Found(Generic[P]):
    """What a search found.

    Attributes:
        point: Where to go; None where no trial was below the start.
        evaluations: Trials that it took.
        reason: Which conditions the point meets, or why there is none.
    """

    point: P | None
    evaluations: int
    reason: str


@dataclass(frozen=True)
class StrongWolfe:
    """φ(α) ≤ φ(0) + c₁ α φ′(0) and |φ′(α)| ≤ c₂ |φ′(0)|.

    Trials are minima of cubic and quadratic interpolations inside an interval that always holds
    such a point. A trial that is not finite is no failure: the next one is shorter. Where rounding
    hides the decrease that φ′(0) promises, the slope's condition alone decides.

    Attributes:
        sufficient_decrease: c₁ in (0, c₂).
        curvature: c₂ in (c₁, 1). 0.9 is usual for quasi-Newton steps; towards 0 the search becomes
            exact, and more expensive.
        max_evaluations: Trials after which the best one is taken, if it is below the start enough.

    Raises:
        ConfigurationError: If these contradict each other.

    Reference:
        Moré and Thuente, "Line search algorithms with guaranteed sufficient decrease", 1994.
    """

    sufficient_decrease: float = 1e-4
    curvature: float = 0.9
    max_evaluations: int = 20

    def __post_init__(self) -> None:
        """Checks the settings."""
        if not 0 < self.sufficient_decrease < self.curvature < 1:
            raise ConfigurationError(
                "need 0 < sufficient_decrease < curvature < 1, got "
                f"{self.sufficient_decrease} and {self.curvature}"
            )
        _check_count(self.max_evaluations)

    def search(
        self, evaluate: Callable[[float], P], start: P, first: float, rounding: float = 0.0
    ) -> Found[P]:
        """Looks for a step length.

        Args:
            evaluate: φ and φ′ at a step length.
            start: The same at 0, with φ′(0) < 0.
            first: First trial.
            rounding: By how much φ may be wrong.

        Returns:
            A point with both conditions, or the best one that meets the first, or none.
        """
        slope = self.sufficient_decrease * start.slope
        low, high = start, None  # the best trial, and the other end once the interval is bounded
        ceiling = math.inf  # nothing is finite from here on
        modified = True
        widths = (math.inf, math.inf)
        step = first
        for count in range(1, self.max_evaluations + 1):
            trial = evaluate(step)
            if not (math.isfinite(trial.value) and math.isfinite(trial.slope)):
                ceiling = step
                step = low.step + RETREAT * (step - low.step)
                continue
            enough = trial.value <= start.value + step * slope
            if abs(trial.slope) <= self.curvature * abs(start.slope):
                if enough:
                    return Found(trial, count, "strong Wolfe conditions")
                if -step * slope <= rounding and trial.value <= start.value + rounding:
                    return Found(trial, count, "at the limits of rounding")
            modified = modified and not (enough and trial.slope >= 0)
            # At first the decrease itself is interpolated where a trial lacks it.
            tilt = slope if modified and trial.value <= low.value and not enough else 0.0
            ahead = trial.step - low.step
            least = trial.step + 1.1 * ahead if low.step > 0 else 0.0
            reach = (least, trial.step + EXTRAPOLATION * ahead)
            low, high, step = next_step(low, high, trial, tilt, reach, rounding)
            if high is not None:
                width = abs(high.step - low.step)
                if width >= 0.66 * widths[0]:  # interpolation does not shrink it
                    step = low.step + 0.5 * (high.step - low.step)
                widths = widths[1], width
                if width <= 1e-15 * max(abs(high.step), abs(low.step)):
                    break
            elif step >= ceiling:
                step = 0.5 * (low.step + ceiling)
            if step == low.step:
                break
        if low.step > 0 and low.value <= start.value + low.step * slope:
            return Found(low, count, "sufficient decrease")
        return Found(None, count, "line search failed")


@dataclass(frozen=True)
class Armijo:
    """φ(α) ≤ φ(0) + c α φ′(0), by halving or so: values alone are asked for.

    Where rounding hides the decrease that φ′(0) promises, it is enough that φ does not rise.

    Attributes:
        sufficient_decrease: c in (0, 1). High values demand most of what the slope promises.
        shrinking_factor: From one trial to the next, in (0, 1). Near 1 finds longer steps.
        max_evaluations: Trials before the search has failed.

    Raises:
        ConfigurationError: If one is out of its range.

    Reference:
        Armijo, "Minimization of functions having Lipschitz continuous first partial derivatives",
        1966.
    """

    sufficient_decrease: float = 1e-4
    shrinking_factor: float = 0.5
    max_evaluations: int = 20

    def __post_init__(self) -> None:
        """Checks the settings."""
        for name in ("sufficient_decrease", "shrinking_factor"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigurationError(
                    f"{name} must be between 0 and 1, got {getattr(self, name)}"
                )
        _check_count(self.max_evaluations)

    def search(
        self, evaluate: Callable[[float], P], start: P, first: float, rounding: float = 0.0
    ) -> Found[P]:
        """Looks for a step length.

        Args:
            evaluate: φ at a step length; φ′ may be anything.
            start: φ and φ′ < 0 at 0.
            first: First trial.
            rounding: By how much φ may be wrong.

        Returns:
            The first of the trials that meets the condition, or none.
        """
        step = first
        for count in range(1, self.max_evaluations + 1):
            trial = evaluate(step)
            promised = step * self.sufficient_decrease * start.slope
            bound = start.value + (promised if -promised > rounding else 0.0)
            if -math.inf < trial.value <= bound:
                return Found(trial, count, "sufficient decrease")
            step *= self.shrinking_factor
        return Found(None, count, "line search failed")


def _check_count(count: int) -> None:
    if count < 1:
        raise ConfigurationError(f"max_evaluations must be at least 1, got {count}")
