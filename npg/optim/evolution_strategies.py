"""Evolution strategies: the gradient of a smoothed objective, from its values alone."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.optim.base import Prediction
from npg.optim.candidates import batched, can_be_batched, warn_of_no_batch
from npg.optim.deviation import Adapt, Deviation
from npg.optim.objective import Objective
from npg.optim.population import Population
from npg.optim.search import NO_CANDIDATE, BaseOptimizer, ParameterSearch, SearchReport
from npg.sampling import Displaced, Shaping, effective_sample_size, shaped
from npg.sampling.shaping import SHAPINGS

# Numbers in a batch of candidates, where nobody says how many: 256 MB of float32.
BATCH_NUMBERS = 2**26


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
            tensor without looking at its value; else one after another where the parameters are.
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
            memory: one copy of the parameters beside the direction. Default: as many as have
            2²⁶ numbers together.
        base: Makes the optimizer that takes ĝ for a gradient, SGD by default.
        seed: Of the candidates.
        parameters: Restricts a module to a part of its parameters.

    A parameter that the objective does not read wanders, since ĝ has noise alone for it: freeze
    it, or give ``parameters``.

    Attributes:
        deviation: Holds σ.

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
            model, lr, candidates=candidates, base=base, seed=seed, parameters=parameters
        )
        if not 0 < sigma < math.inf:
            raise ConfigurationError(
                f"sigma must be positive and finite, got {sigma}: without noise all candidates are "
                "the same"
            )
        self.shaping: Shaping = shaping
        self.antithetic = antithetic
        self.adapt: Adapt = adapt
        self.sigma_lr = sigma_lr
        self.chunk_size = chunk_size
        self.deviation = Deviation(float(sigma), separable=adapt == "separable")
        self._asked: tuple[Population, Displaced] | None = None
        self._batches = True
        self.check()

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
        if self.candidates < 2 or (self.antithetic and self.candidates % 2):
            raise ConfigurationError(
                f"candidates must be at least 2, and even where antithetic=True; got "
                f"{self.candidates}: nothing can be said of one candidate alone"
            )
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ConfigurationError(f"chunk_size must be at least 1, got {self.chunk_size}")
        if self.sigma_lr is not None and not 0 <= self.sigma_lr < math.inf:
            raise ConfigurationError(
                f"sigma_lr must be finite and not negative, got {self.sigma_lr}"
            )

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
            while len(values) < self.candidates:
                values += self._values(
                    objective, population, min(number, self.candidates - len(values))
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
                "tell() takes the objectives of what ask() returned: ask first"
            )
        values = torch.as_tensor(objectives, dtype=torch.float64).detach().cpu()
        if values.shape != (self.candidates,):
            raise ConfigurationError(
                f"objectives must be {self.candidates} numbers, one a candidate; got the shape "
                f"{tuple(values.shape)}"
            )
        population, displaced = self._asked
        self._asked = None
        with torch.no_grad():
            return self._update(population, displaced, values)

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

    def _values(self, objective: Objective, population: Population, number: int) -> list[float]:
        """The objectives of the next candidates: so many, or as many as a row of noise gives."""
        if number > 1 and self._batches and can_be_batched(objective):
            rows = population.rows(number)
            try:
                return list(batched(objective, rows).tolist())
            except Exception as error:  # whatever vmap does not know; what is wrong itself will
                warn_of_no_batch(type(self).__name__, error)  # come back without it
                self._batches = False
                population.forget()
        values = []
        for _ in population.in_place():
            values.append(self.scalar(objective.again()))
        return values

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
        weights = shaped(objectives, self.shaping) / number
        if not self.antithetic and self.shaping == "none" and number > 1:
            weights *= number / (number - 1)  # the mean of the others: it does not know its own ε
        direction, growth = population.combined(weights, self.adapt)
        obstacle = self.descend(direction, displaced)
        if not obstacle and growth is not None:
            self.deviation.grow(growth, self.sigma_lr, self._places())
        share = weights.abs() / weights.abs().sum() if bool(weights.any()) else kept / number
        return SearchReport(
            **known,
            accepted=not obstacle,
            reason=obstacle or "evolution strategies",
            fraction=float(not obstacle),
            best=float(objectives[kept].min()),
            effective_sample_size=effective_sample_size(share),
            gradient_norm=float(torch.linalg.vector_norm(direction)),
        )

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
        self.deviation.load_state_dict(state_dict["deviation"], self._places())

    def check_state(self, state_dict: dict[str, Any]) -> None:
        """Refuses what :meth:`load_state_dict` cannot restore."""
        super().check_state(state_dict)
        self.deviation.check_state(state_dict["deviation"], self._places())
