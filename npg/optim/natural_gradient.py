"""Natural gradient under a KL trust region, for any model that predicts a distribution."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from npg import ranks
from npg.curvature import Fisher, math_attention
from npg.errors import ConfigurationError, NumericalError
from npg.likelihoods import as_distribution, detached, joint_kl
from npg.optim.base import Closure, FunctionOptimizer, Prediction, StepReport
from npg.optim.step_factors import StepFactors, generator_like
from npg.preconditioners import DENSE_LIMIT, ConjugateGradientInverse, DenseInverse, Inverse
from npg.steps import Trial, TrustRegion, kl_step_length

FisherInverse = Literal["fisher-cg", "fisher-dense", "kfac"]
StepNorm = Literal["fisher", "damped"]

# Where a prediction is nearly deterministic F vanishes and the step of the quadratic model is
# arbitrarily long; without a line search only this stands between it and a KL of dozens of nats.
OVERSHOOT = 10.0
FULL_STEP_HALVINGS = 30
# Weight of earlier steps in the Kronecker factors: a policy's change little from one to the next.
FACTOR_DECAY = 0.9


class NaturalGradient(FunctionOptimizer):
    """θ ← θ − α η (F + λI)⁻¹ g, inside KL(old ‖ new) ≤ δ.

    η = √(2δ / xᵀFx) puts the quadratic model of the KL on the boundary, and a line search shortens
    the step (α) until the true KL is inside and the loss has fallen. TRPO is this optimizer on the
    surrogate objective; on a cross-entropy it trains a classifier under the same trust region:

        optimizer = NaturalGradient(model, target_kl=0.01, likelihood="categorical")
        def closure():
            logits = model(x)
            return F.cross_entropy(logits, y), logits
        report = optimizer.step(closure)

    What can change from step to step is in ``param_groups``. Where groups differ in more than
    ``lr``, the first one's values count.

    Args:
        model: Module to train, or its parameters.
        lr: Multiplier of the step. 1 starts the search where ``step_norm`` says; with
            ``target_kl=None`` it is the learning rate of the plain natural gradient.
        target_kl: δ, joint KL per sample averaged over samples, nats. 0.01 is careful, 0.1 bold;
            ``None`` takes the step ``lr`` (F + λI)⁻¹ g whatever its KL.
        damping: λ, in the units of the Fisher matrix. High values turn towards the gradient.
        curvature: ``"fisher-cg"`` solves by conjugate gradient; ``"fisher-dense"`` forms the
            matrix, for models of up to a few thousand parameters; ``"kfac"`` takes Kronecker
            factors, running means over the steps, instead: the direction is K-FAC's, its length
            still that of the exact matrix. It needs the module.
        cg_preconditioner: ``"kfac"`` has the same factors precondition conjugate gradient, which
            then needs fewer iterations. None: no preconditioner.
        step_norm: ``"fisher"`` puts the first trial on the boundary. ``"damped"`` measures it by
            xᵀ(F + λI)x, as TRPO's first implementation and sb3-contrib's do: a shorter step, and
            the shorter the less curvature there is along it.
        cg_max_steps: Bound on the iterations of conjugate gradient.
        cg_tolerance: Relative residual at which it stops.
        line_search: Whether to check the true KL and loss. Without, the full step is taken (NPG),
            halved only while its true KL is above ten times the target.
        line_search_shrinking_factor: Ratio of successive trials, in (0, 1).
        line_search_max_iter: Trials before the parameters are left as they were.
        likelihood: What a tensor prediction parametrises, see
            :func:`npg.likelihoods.as_distribution`; not needed where the closure returns
            a Distribution.
        fisher: ``"exact"``, ``"sampled"``, as in :class:`npg.curvature.Fisher`. Kronecker factors
            are sampled in any case.
        seed: Seeds the generator of sampled labels.
        parameters: Restricts a module to a part of its parameters.

    Reference:
        Amari, "Natural gradient works efficiently in learning", 1998; Schulman et al., "Trust
        region policy optimization", 2015.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 1.0,
        target_kl: float | None = 0.01,
        damping: float = 0.1,
        curvature: FisherInverse = "fisher-cg",
        cg_preconditioner: Literal["kfac"] | None = None,
        step_norm: StepNorm = "fisher",
        cg_max_steps: int = 15,
        cg_tolerance: float = 1e-5,
        line_search: bool = True,
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
        likelihood: str | Callable[[Tensor], Distribution] | None = None,
        fisher: Literal["exact", "sampled"] = "exact",
        seed: int = 0,
        parameters: Iterable[Tensor] | None = None,
    ) -> None:
        if curvature not in ("fisher-cg", "fisher-dense", "kfac"):
            raise ConfigurationError(
                f'curvature must be "fisher-cg", "fisher-dense" or "kfac", got {curvature!r}'
            )
        if cg_preconditioner not in (None, "kfac"):
            raise ConfigurationError(
                f'cg_preconditioner must be "kfac" or None, got {cg_preconditioner!r}'
            )
        if cg_preconditioner is not None and curvature != "fisher-cg":
            raise ConfigurationError(
                f'cg_preconditioner={cg_preconditioner!r} goes with curvature="fisher-cg"'
            )
        if fisher not in ("exact", "sampled"):
            raise ConfigurationError(f'fisher must be "exact" or "sampled", got {fisher!r}')
        defaults = {
            "lr": lr,
            "target_kl": target_kl,
            "damping": damping,
            "step_norm": step_norm,
            "cg_max_steps": cg_max_steps,
            "cg_tolerance": cg_tolerance,
            "line_search": line_search,
            "line_search_shrinking_factor": line_search_shrinking_factor,
            "line_search_max_iter": line_search_max_iter,
        }
        _check(defaults)
        super().__init__(model, defaults, parameters)
        size = sum(p.numel() for p in self.tensors())
        if curvature == "fisher-dense" and size > DENSE_LIMIT:
            raise ConfigurationError(
                f'curvature="fisher-dense" forms a matrix over {size} parameters (limit '
                f'{DENSE_LIMIT}): use "fisher-cg"'
            )
        self.curvature = curvature
        self.likelihood = likelihood
        self.fisher = fisher
        factored = "kfac" in (curvature, cg_preconditioner)
        self.generator: torch.Generator | None = None
        if fisher == "sampled" or factored:
            self.generator = generator_like(self.tensors(), seed)
        self.factors: StepFactors | None = None
        if factored:
            self._factorise()

    def _factorise(self) -> None:
        """Begins to gather Kronecker factors of what the groups hold now."""
        assert self.generator is not None
        self.factors = StepFactors(self.module, self.tensors(), self.generator, FACTOR_DECAY)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters; Kronecker factors are gathered anew.

        Args:
            param_group: ``params`` and what differs from the defaults.
        """
        super().add_param_group(param_group)
        if getattr(self, "factors", None) is not None:
            self._factorise()

    def step(  # type: ignore[override]
        self,
        closure: Closure,
        *,
        reference: Distribution | None = None,
        prediction: Callable[[], Prediction] | None = None,
        weights: Tensor | None = None,
    ) -> StepReport:
        """Takes one step.

        Args:
            closure: Runs the forward pass and returns (loss, prediction); no backward. It is
                called again, without gradients, by every trial of the line search.
            reference: The KL is measured from this prediction instead of that before the step:
                for a trust region that spans more than this step.
            prediction: Computes another prediction for the Fisher matrix, on a sub-sample, say,
                whose samples all count alike. Default: the closure's.
            weights: Weight per sample in the mean KL and in the Fisher; zeros mask samples.

        Returns:
            What was done. A gradient or a loss that is not finite, a zero gradient and a failed
            search leave the parameters as they were, bit for bit, and the report says so.
        """
        settings = self.param_groups[0]
        _check(settings)
        target_kl, damping = settings["target_kl"], float(settings["damping"])
        parameters = self.tensors()
        if self.factors is not None:
            self.factors.listen()
        start = self.start(closure)
        loss, norm = start.loss, start.gradient_norm
        if start.obstacle:
            if self.factors is not None:
                self.factors.pause()
            return self.skip(loss, start.obstacle, gradient_norm=norm)
        with torch.enable_grad():
            old = as_distribution(start.prediction, self.likelihood)

        matrix = self.matrix_over_ranks(self._matrix(parameters, old, prediction, weights))
        inverse = self._inverse(parameters, old, weights, settings)
        solution = inverse.solve(matrix, damping, start.gradient)
        known: dict[str, Any] = {
            "gradient_norm": norm,
            "cg_iterations": solution.iterations,
            "cg_residual": solution.residual,
            "damping": damping,
        }
        quadratic = solution.quadratic
        if settings["step_norm"] == "damped":
            quadratic += damping * float(solution.x @ solution.x)
        try:
            length = 1.0 if target_kl is None else kl_step_length(quadratic, target_kl)
        except NumericalError:
            return self.skip(loss, f"no direction: {solution.reason}", **known)
        direction = solution.x * (-length) * self.rates()
        if not bool(torch.isfinite(direction).all()):
            return self.skip(loss, "direction is not finite", **known)

        reference = detached(old) if reference is None else reference
        measure = _Measure(closure, reference, self.likelihood, weights, self.distributed)
        searching = settings["line_search"] and target_kl is not None
        if searching and target_kl is not None:
            region = TrustRegion(
                target_kl,
                settings["line_search_shrinking_factor"],
                settings["line_search_max_iter"],
            )
        elif target_kl is not None:  # the full step, unless the quadratic model is far off
            region = TrustRegion(OVERSHOOT * target_kl, 0.5, FULL_STEP_HALVINGS)
        else:  # one trial, refused only where it leaves the finite numbers
            region = TrustRegion(math.inf, max_trials=1)
        ceiling = loss if searching else math.inf
        fraction, trial = region.search(parameters, direction, ceiling, measure)
        if trial is None:
            self.extra["rejected"] += 1
            reason = "line search failed" if searching else "step is not finite"
            return StepReport(loss, loss, False, reason, kl=0.0, step_length=length, **known)
        return StepReport(
            loss,
            trial.loss,
            True,
            solution.reason,
            kl=trial.kl,
            fraction=fraction,
            step_length=length,
            **known,
        )

    def _inverse(
        self,
        parameters: list[Tensor],
        prediction: Distribution,
        weights: Tensor | None,
        settings: dict[str, Any],
    ) -> Inverse:
        """The way to solve for the direction, its factors brought up to date."""
        if self.curvature == "fisher-dense":
            return DenseInverse()
        factored = None
        if self.factors is not None:
            mask = None if weights is None else weights > 0
            self.factors.fisher.distributed = self.distributed
            factored = self.factors.inverse(
                parameters, prediction, float(settings["damping"]), mask
            )
            if self.curvature == "kfac":
                return factored
        return ConjugateGradientInverse(
            settings["cg_max_steps"], settings["cg_tolerance"], preconditioner=factored
        )

    def _matrix(
        self,
        parameters: list[Tensor],
        old: Distribution,
        prediction: Callable[[], Prediction] | None,
        weights: Tensor | None,
    ) -> Fisher:
        if prediction is not None:
            with torch.enable_grad(), math_attention():
                old = as_distribution(prediction(), self.likelihood)
            weights = None
        return Fisher(parameters, old, kind=self.fisher, weights=weights, generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        """torch's state, the counters, and the generator."""
        state = super().state_dict()
        if self.generator is not None:
            state["generator"] = self.generator.get_state()
        if self.factors is not None:
            state["factors"] = self.factors.state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        own = dict(state_dict)
        generator_state = own.pop("generator", None)
        factors = own.pop("factors", None)
        super().load_state_dict(own)
        if generator_state is not None and self.generator is not None:
            self.generator.set_state(generator_state)
        if factors is not None and self.factors is not None:
            self.factors.load(factors)


class _Measure:
    """Evaluates loss and KL from a reference at the parameters' current values."""

    def __init__(
        self,
        closure: Closure,
        reference: Distribution,
        likelihood: str | Callable[[Tensor], Distribution] | None,
        weights: Tensor | None,
        distributed: bool,
    ) -> None:
        self.closure = closure
        self.reference = reference
        self.distributed = distributed
        self.likelihood = likelihood
        self.weights = None if weights is None else weights / weights.sum()

    def __call__(self) -> Trial:
        loss, output = self.closure()
        kl = joint_kl(self.reference, as_distribution(output, self.likelihood))
        if self.weights is None:
            mean = kl.mean()
        else:  # what a mask hides may be no number
            mean = torch.where(self.weights > 0, kl * self.weights, 0.0).sum()
        if self.distributed:
            return Trial(*ranks.averages([float(loss), float(mean)]))
        return Trial(float(loss), float(mean))


def _check(settings: dict[str, Any]) -> None:
    """Refuses settings that cannot work, whether given at first or changed in a group later."""
    lr, target_kl, damping = settings["lr"], settings["target_kl"], settings["damping"]
    shrinking = settings["line_search_shrinking_factor"]
    if not lr > 0:
        raise ConfigurationError(f"lr must be positive, got {lr}")
    if target_kl is not None and not 0 < target_kl < math.inf:
        raise ConfigurationError(
            f"target_kl must be positive (0.01 is usual), got {target_kl}; None switches it off"
        )
    if not 0 <= damping < math.inf:
        raise ConfigurationError(f"damping must not be negative, got {damping}")
    if settings["step_norm"] not in ("fisher", "damped"):
        raise ConfigurationError(
            f'step_norm must be "fisher" or "damped", got {settings["step_norm"]!r}'
        )
    if settings["line_search"] and not 0 < shrinking < 1:
        raise ConfigurationError(
            f"line_search_shrinking_factor must be between 0 and 1, got {shrinking}"
        )
    for name in ("cg_max_steps", "line_search_max_iter"):
        if settings[name] < 1:
            raise ConfigurationError(f"{name} must be at least 1, got {settings[name]}")
