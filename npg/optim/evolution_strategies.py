"""Evolution strategies: the gradient of a smoothed objective, from its values alone."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, get_args

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.optim.base import Prediction
from npg.optim.candidates import Evaluator
from npg.optim.deviation import Adapt, Deviation
from npg.optim.objective import Objective
from npg.optim.population import Population
from npg.optim.search import (
    NO_CANDIDATE,
    BaseOptimizer,
    ParameterSearch,
    SearchReport,
    finite,
)
from npg.sampling import Displaced, Shaping, effective_sample_size, shaped
from npg.sampling.shaping import SHAPINGS

# Numbers in a batch of candidates, where nobody says how many: 32 MB of float32, and a few times
# that with their noise and activations.
BATCH_NUMBERS = 2**23
ALL_EQUAL = (
    "all candidates have the same objective: nothing tells them apart, or sigma is too small"
)


class EvolutionStrategies(ParameterSearch):
    """θ ← θ − η ĝ, ĝ = 1/(nσ) Σᵢ uᵢ εᵢ, uᵢ the shaped objective at θ + σ εᵢ.

    ĝ estimates the gradient of E l(θ + σ ε), ε ~ N(0, I), without differentiating l: it is the
    policy gradient of the Gaussian N(θ, σ² I) over parameters. The closure returns the objective:

        def closure():
            return 1 - accuracy(model(x), y)

    With ``adapt`` the Gaussian follows its natural gradient: the mean's is σ² ĝ, so that steps
    shrink with σ, and the logarithm of σ moves by −η_σ mean(uᵢ (εᵢ² − 1)) / 2.

    Args:
        model: Module to train, or its parameters. For a module candidates are evaluated in
            batches by ``torch.func.vmap``, if the closure runs the module itself and returns a
            tensor without looking at its value; else one after another where the parameters are,
            which a warning says. The first step finds out: every closure has to be of one kind.
        lr: η.
        candidates: n, per step. More take noise out of ĝ, whose variance grows with the number of
            parameters.
        sigma: σ, in the units of the parameters. Large values smooth over more.
        shaping: ``"ranks"`` from −1/2 to 1/2, which no outlier and no scale disturbs;
            ``"utilities"`` of natural evolution strategies; ``"none"`` the objective less its
            mean, which is unbiased. See :func:`npg.sampling.shaped`.
        antithetic: Whether noise comes in pairs ±ε, for which ``candidates`` must be even.
        adapt: ``"none"`` keeps σ; ``"global"`` adapts one for all, ``"separable"`` one for each
            parameter.
        sigma_lr: η_σ. Default: 1 for one σ, (3 + ln P)/(5√P) for one of each of P parameters.
        chunk_size: Candidates evaluated at once; rounded down to whole pairs. 1 takes the least
            memory: one copy of the parameters beside the direction, and with separable σ three
            more. Default: as many as have
            2²³ numbers together.
        base: Makes the optimizer that takes ĝ for a gradient, SGD by default.
        seed: Of the candidates.
        parameters: Restricts a module to a part of its parameters.

    A parameter that the objective does not read wanders, since ĝ has noise alone for it: freeze
    it, or give ``parameters``.

    Attributes:
        deviation: Holds σ.
        evaluator: Knows whether vmap can run the closures.

    Raises:
        ConfigurationError: If a setting cannot work.

    Reference:
        Salimans et al., "Evolution strategies as a scalable alternative to reinforcement
        learning", 2017; Wierstra et al., "Natural evolution strategies", 2014, section 3.5.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        *,
        candidates: int = 64,
        sigma: float = 0.05,
        shaping: Shaping = "ranks",
        antithetic: bool = True,
        adapt: Adapt = "none",
        sigma_lr: float | None = None,
        chunk_size: int | None = None,
        base: BaseOptimizer = torch.optim.SGD,
        seed: int = 0,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            model,
            lr,
            candidates=candidates,
            sigma=sigma,
            base=base,
            seed=seed,
            parameters=parameters,
        )
        self.shaping: Shaping = shaping
        self.antithetic = antithetic
        self.adapt: Adapt = adapt
        self.sigma_lr = sigma_lr
        self.chunk_size = chunk_size
        self.check()
        self.deviation = Deviation(float(sigma), separable=adapt == "separable")
        self._asked: tuple[Population, Displaced] | None = None
        self.evaluator = Evaluator()
        if self.distributed:  # vmap does not run a wrapped model
            self.evaluator.batches = False

    def check(self) -> None:
        """Refuses settings that cannot work, given at first or changed since."""
        super().check()
        if self.shaping not in SHAPINGS:
            raise ConfigurationError(
                f"shaping must be one of {', '.join(SHAPINGS)}; got {self.shaping!r}"
            )
        if self.adapt not in get_args(Adapt):
            raise ConfigurationError(
                f"adapt must be one of {', '.join(get_args(Adapt))}; got {self.adapt!r}"
            )
        if self.antithetic and self.candidates % 2:
            raise ConfigurationError(
                f"candidates must be even where antithetic=True, got {self.candidates}"
            )
        size, rate = self.chunk_size, self.sigma_lr
        if size is not None and not (isinstance(size, Integral) and size >= 1):
            raise ConfigurationError(f"chunk_size must be a whole number above 0, got {size!r}")
        if rate is not None and not (isinstance(rate, Real) and 0 <= rate < math.inf):
            raise ConfigurationError(f"sigma_lr must be finite and not negative, got {rate!r}")
        if hasattr(self, "deviation") and self.deviation.separable != (self.adapt == "separable"):
            raise ConfigurationError('adapt cannot become "separable" later, nor cease to be it')

    @property
    def advice(self) -> str:
        """What kind of closure it takes."""
        return (
            "the closure must return what is to be minimised, a number or a scalar tensor, and "
            "nothing else; train_step() makes one of (loss, prediction)"
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> SearchReport:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: Returns the objective.

        Returns:
            What was done. If no candidate has a finite objective, the parameters stay as they were.

        Raises:
            ConfigurationError: If a setting cannot work, or the closure is of another kind.
            NumericalError: If no candidate had a finite objective three times in a row.
        """
        if not callable(closure):
            raise ConfigurationError(f"{type(self).__name__}.step(closure): {self.advice}")
        self.check()
        objective = Objective(self, closure)
        before = self.scalar(objective.again())
        displaced = Displaced(self.tensors())
        population = self._population(displaced)
        number = self._at_once(displaced)
        values: list[float] = []
        with self.restoring(displaced):
            self.evaluator.look(objective, displaced, before, number)
            while len(values) < self.candidates:
                rest = self.candidates - len(values)
                values += self.evaluator.values(
                    objective, population, min(number, rest), self.scalar
                )
        report = self._update(population, displaced, torch.tensor(values, dtype=torch.float64))
        return replace(report, loss=before, objective=before, evaluations=objective.evaluations)

    def closure_of(
        self,
        forward: Callable[[], tuple[Tensor, Prediction]],
        objective: Callable[[Any], Tensor | float] | None,
    ) -> Callable[[], Any]:
        """Makes a closure for :meth:`step` of what :func:`npg.optim.train_step` takes."""

        def closure() -> Tensor | float:
            loss, prediction = forward()
            return loss if objective is None else objective(prediction)

        return closure

    def ask(self) -> Tensor:
        """Draws candidates, for objectives that no closure computes: episodes, experiments.

        Returns:
            Flat parameters [n, P], in the order of :meth:`tensors`. With ``antithetic`` the
            candidates 2k and 2k + 1 are a pair.
        """
        self.check()
        displaced = Displaced(self.tensors())
        population = self._population(displaced)
        self._asked = population, displaced
        with torch.no_grad():
            return population.rows(self.candidates)

    def tell(self, objectives: Tensor | Iterable[float]) -> SearchReport:
        """Takes the step that the candidates of the last :meth:`ask` call for.

        Args:
            objectives: Of the candidates [n], to be minimised; those not finite are dropped.

        Returns:
            What was done.

        Raises:
            ConfigurationError: If nothing was asked, or their number is another.
            NumericalError: If none was finite three times in a row.
        """
        if self._asked is None:
            raise ConfigurationError(
                "tell() takes the objectives of what ask() returned: ask first, and again after "
                "loading a state or copying the optimizer"
            )
        self.check()
        population, displaced = self._asked
        if not isinstance(objectives, Tensor):
            objectives = torch.tensor(
                [self.scalar(value) for value in objectives], dtype=torch.float64
            )
        values = objectives.detach().cpu()
        if values.shape != (population.size,) or values.is_complex():
            raise ConfigurationError(
                f"objectives must be {population.size} real numbers, one a candidate; got the "
                f"shape {tuple(values.shape)}, {values.dtype}"
            )
        if not displaced.untouched(self.tensors()):
            raise ConfigurationError(
                "parameters were moved, frozen or added since ask(): its candidates are not of "
                "these; ask again"
            )
        self._asked = None
        with torch.no_grad():
            return self._update(population, displaced, values.double())

    def _places(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _population(self, displaced: Displaced) -> Population:
        deviation = self.deviation.now(self._places(), displaced.start.dtype)
        return Population(displaced, deviation, self.generator, antithetic=self.antithetic)

    def _at_once(self, displaced: Displaced) -> int:
        """Candidates of a batch: whole pairs, or one."""
        number = self.chunk_size or max(1, BATCH_NUMBERS // max(1, len(displaced.start)))
        number = min(number, self.candidates)
        return max(1, number - number % 2) if self.antithetic else number

    def _update(
        self, population: Population, displaced: Displaced, objectives: Tensor
    ) -> SearchReport:
        self.extra["steps"] += 1
        kept = torch.isfinite(objectives)
        number = int(kept.sum())
        deviation = population.deviation
        known: dict[str, Any] = {
            "loss": math.nan,
            "loss_after": math.nan,
            "candidates": len(objectives),
            "dropped": len(objectives) - number,
            "sigma": float(torch.as_tensor(deviation, dtype=torch.float64).square().mean().sqrt()),
        }
        if not number:
            return self.failed(SearchReport(**known, accepted=False, reason=NO_CANDIDATE))
        known["best"] = float(objectives[kept].min())
        if known["best"] == float(objectives[kept].max()):
            self.extra["skipped"] += 1
            return SearchReport(**known, accepted=False, reason=ALL_EQUAL, gradient_norm=0.0)
        weights = shaped(objectives, self.shaping) / number
        pair_factor = 1.0
        if self.shaping == "none" and number > 2:  # by a mean that knows nothing of its own ε
            if len(population.signs) == 2:
                pair_factor = number / (number - 2)
            else:
                weights *= number / (number - 1)
        direction, growth = population.combined(weights, self.adapt, pair_factor)
        if growth is not None and not finite(growth):
            direction = torch.full_like(direction, math.nan)
        obstacle = self.descend(direction, displaced)
        known["gradient_norm"] = float(torch.linalg.vector_norm(direction))
        if not obstacle and growth is not None:
            self.deviation.grow(growth, self.sigma_lr, self._places())
        return SearchReport(
            **known,
            accepted=not obstacle,
            reason=obstacle or "evolution strategies",
            fraction=float(not obstacle),
            effective_sample_size=effective_sample_size(weights.abs() / weights.abs().sum()),
        )

    def __getstate__(self) -> dict[str, Any]:
        """All but what was asked: its candidates are of these parameters, not of a copy's."""
        return {**super().__getstate__(), "_asked": None}

    def state_dict(self) -> dict[str, Any]:
        """As of any search, and the deviation uncast."""
        return {**super().state_dict(), "deviation": self.deviation.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave.

        Args:
            state_dict: Of this class, with the same base optimizer.

        Raises:
            ConfigurationError: If it is of another, or of other parameters.
        """
        super().load_state_dict(state_dict)
        self._asked = None
        self.deviation.load_state_dict(state_dict["deviation"], self._places())

    def check_state(self, state_dict: dict[str, Any]) -> None:
        """Refuses what :meth:`load_state_dict` cannot restore."""
        super().check_state(state_dict)
        self.deviation.check_state(state_dict["deviation"], self._places())
