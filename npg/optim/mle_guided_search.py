"""Search around the parameters, guided by the gradient of a surrogate of the objective."""

import math
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.optim.base import Prediction, obstacle_to
from npg.optim.guided_candidates import Candidate, GuidedCandidates, Scale
from npg.optim.objective import Objective
from npg.optim.search import NO_CANDIDATE, BaseOptimizer, ParameterSearch, SearchReport
from npg.sampling import Displaced, effective_sample_size, normalised_weights, tempered

Reference = Literal["proposal", "uniform"]


class MLEGuidedSearch(ParameterSearch):
    """θ ← θ + η Σᵢ wᵢ Δᵢ, Δᵢ drawn around 0 or around −g, wᵢ ∝ r(Δᵢ) exp(−l(θ + Δᵢ)/α) / q(Δᵢ).

    g is the gradient of a loss that can be differentiated, l what is really to be minimised, 1 −
    accuracy for instance, q = λ N(0, σ²) + (1 − λ) N(−g, σ²). For a quadratic l, λ = 1 and absolute
    noise the step of many candidates is −(H + α/σ² I)⁻¹ g: steepest descent for α → ∞, Newton's for
    α → 0. That of a few is longer, the longer the smaller α is.

    The closure runs the forward pass, and returns both:

        def closure():
            logits = model(x)
            return F.cross_entropy(logits, y), 1 - accuracy(logits, y)

    Candidates are evaluated where the parameters are, which are put back exactly. Memory: one copy
    of the parameters beside the gradient; noise is drawn again, not kept.

    Args:
        model: Module to train, or its parameters; the module lets running statistics stay as the
            first evaluation left them.
        lr: η. 1 is the method's own; the direction is then the mean of the candidates.
        candidates: Per step, each a forward pass; at least 2.
        sigma: Deviation of the noise, in units of ``scale``. High values look further, where the
            gradient says less.
        scale: ``"tensor"`` is the mean |g| of each tensor, ``"global"`` of all, ``"absolute"`` 1.
        exploration: λ, share of the candidates around 0; the others are around −g. 1 needs no
            good surrogate, 0 trusts it.
        temperature: α, in the objective's units: differences far below it do not count, those far
            above it leave one candidate.
        reference: r: ``"proposal"`` is q itself, so that the objective alone decides.
            ``"uniform"`` is 1, the paper's form: in high dimension ‖Δ‖ then decides alone, and
            where exp(−l/α) is wider than the proposals, so that weights have no variance.
        antithetic: Whether noise comes in pairs ±ε, which halves the drawing and takes the noise
            out of the direction where the objective does not depend on it.
        max_grad_norm: Longest g; infinity does not clip.
        base: Makes the optimizer that takes minus the direction for a gradient, SGD by default.
        seed: Of the candidates.
        parameters: Restricts a module to a part of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work.

    Reference:
        Welleck and Cho, "MLE-guided parameter search for task loss minimization in neural sequence
        modeling", 2021, equations 6 to 10; weights here are in log space, with the σ of the noise.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        *,
        candidates: int = 4,
        sigma: float = 1.0,
        scale: Scale = "tensor",
        exploration: float = 0.5,
        temperature: float = 0.01,
        reference: Reference = "proposal",
        antithetic: bool = True,
        max_grad_norm: float = 1.0,
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
        self.scale: Scale = scale
        self.exploration = exploration
        self.temperature = temperature
        self.reference: Reference = reference
        self.antithetic = antithetic
        self.max_grad_norm = max_grad_norm
        self.check()

    def check(self) -> None:
        """Refuses settings that cannot work, given at first or changed since."""
        super().check()
        for name in ("temperature", "max_grad_norm"):  # infinity may be meant
            value = getattr(self, name)
            if not (isinstance(value, Real) and float(value) > 0):
                raise ConfigurationError(f"{name} must be positive, got {value!r}")
        if not (isinstance(self.exploration, Real) and 0 <= self.exploration <= 1):
            raise ConfigurationError(
                f"exploration must be between 0 and 1, got {self.exploration!r}"
            )
        for name, choices in (("scale", Scale), ("reference", Reference)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigurationError(
                    f"{name} must be one of {', '.join(get_args(choices))}; "
                    f"got {getattr(self, name)!r}"
                )

    @property
    def advice(self) -> str:
        """What kind of closure it takes."""
        return (
            "the closure must run the forward pass only and return (loss, objective): the loss, a "
            "scalar tensor with its graph, and what is to be minimised, a number or a scalar "
            "tensor without one (detach() it); or the loss alone, which then is the objective. No "
            "backward(), no zero_grad(). train_step() takes objective=, prediction → number"
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> SearchReport:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: Runs the forward pass and returns (loss, objective), or the loss; no backward.

        Returns:
            What was done. Without a finite loss and gradient, or a finite objective, the
            parameters stay as they were.

        Raises:
            ConfigurationError: If a setting cannot work, or the closure is of another kind.
            NumericalError: If no candidate had a finite objective three times in a row.
        """
        self.check()
        self.extra["steps"] += 1
        objective = Objective(self, closure)
        loss, second = objective.evaluate()
        before = float(loss.detach()) if second is None else self.scalar(second)
        gradient = self.gradient(loss, self.tensors(), retain_graph=False)
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        norm = float(torch.linalg.vector_norm(gradient))
        known: dict[str, Any] = {
            "loss": float(loss.detach()),
            "loss_after": math.nan,
            "objective": before,
            "gradient_norm": norm,
        }
        flat = norm == 0 and self.scale == "absolute"  # there is noise without a gradient
        obstacle = "" if flat else obstacle_to(known["loss"], norm)
        if obstacle:
            self.extra["skipped"] += 1
            return SearchReport(**known, accepted=False, reason=obstacle)
        gradient *= -1.0 if norm <= self.max_grad_norm else -self.max_grad_norm / norm
        displaced = Displaced(self.tensors())
        search = GuidedCandidates(
            displaced,
            gradient,
            self.generator,
            sigma=self.sigma,
            scale=self.scale,
            exploration=self.exploration if self.reference == "uniform" else None,
        )
        with self.restoring(displaced):
            tried: list[Candidate] = []
            for guided in self._guided():
                pair = self.antithetic and len(tried) + 1 < self.candidates
                tried += search.tried(guided, lambda: self._objective(objective.again()), pair=pair)
        objectives = torch.tensor([c.objective for c in tried], dtype=torch.float64)
        known |= {
            "candidates": len(tried),
            "dropped": int((~torch.isfinite(objectives)).sum()),
            "evaluations": objective.evaluations,
            "sigma": search.sigma,
        }
        if known["dropped"] == len(tried):
            return self.failed(SearchReport(**known, accepted=False, reason=NO_CANDIDATE))
        log_weights = tempered(objectives, self.temperature)
        if self.reference == "uniform":
            log_weights -= torch.tensor([c.log_proposal for c in tried], dtype=torch.float64)
        weights = normalised_weights(log_weights)
        obstacle = self.descend(search.minus_mean_(tried, weights.tolist()), displaced)
        return SearchReport(
            **known,
            accepted=not obstacle,
            reason=obstacle or "search",
            fraction=float(not obstacle),
            best=float(objectives[torch.isfinite(objectives)].min()),
            effective_sample_size=effective_sample_size(weights),
        )

    def closure_of(
        self,
        forward: Callable[[], tuple[Tensor, Prediction]],
        objective: Callable[[Any], Tensor | float] | None,
    ) -> Callable[[], Any]:
        """Makes a closure for :meth:`step` of what :func:`npg.optim.train_step` takes."""

        def closure() -> tuple[Tensor, Tensor | float]:
            loss, prediction = forward()
            if objective is None:
                return loss, loss.detach()
            with torch.no_grad():
                return loss, objective(prediction)

        return closure

    def _objective(self, result: object) -> float:
        loss, objective = result if isinstance(result, tuple) else (result, None)
        return self.scalar(loss.detach() if objective is None else objective)

    def _guided(self) -> list[bool]:
        """Whether each draw of noise is around −g: as many as λ says, as nearly as can be."""
        number = -(-self.candidates // 2) if self.antithetic else self.candidates
        share = 1 - self.exploration
        # Systematic sampling: every draw is guided with this probability, and their number is
        # within one of its mean.
        offset = float(torch.rand((), generator=self.generator, device=self.generator.device))
        counts = [math.floor(k * share + offset) for k in range(number + 1)]
        return [counts[k + 1] > counts[k] for k in range(number)]
