"""K-FAC in an unchanged training loop, with the true Fisher."""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.parallel import DistributedDataParallel

from npg.curvature.kronecker import FisherKind, KroneckerFisher, Reduction, Sharing
from npg.errors import ConfigurationError
from npg.optim.base import Closure, FunctionOptimizer, Protocol, StepReport
from npg.optim.kfac_closure import ClosureStep
from npg.preconditioners import ChainInverse, EigenbasisInverse, KroneckerInverse
from npg.steps import LevenbergMarquardt, kl_clip_factor

Inverse = Literal["block-diagonal", "block-tridiagonal"]

# The plain loop's rule where nothing is given: a fixed λ, a step of the whole natural gradient,
# averaged over ten batches, and never further than this KL.
PLAIN_DAMPING = 1e-2
PLAIN_MOMENTUM = 0.9
PLAIN_KL_CLIP = 1e-2


class KFAC(FunctionOptimizer):
    """θ ← θ + v,  v ← μ v − (1 − μ) ν η F̂⁻¹g, with F̂ the Kronecker-factored Fisher matrix.

    In the plain loop ν = min(1, √(2δ / η² gᵀF̂⁻¹g)) keeps each step within a KL divergence of δ by
    F̂'s model; v is an average of such steps, and no longer than they are:

        optimizer = KFAC(model, likelihood="categorical")
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()

    With a closure that runs the forward pass only, and returns (loss, prediction), η and μ come
    from the exact quadratic model on the span of F̂⁻¹g and the last step, and λ follows Levenberg
    and Marquardt. Nothing needs tuning then:

        def closure():
            logits = model(x)
            return F.cross_entropy(logits, y), logits
        optimizer.step(closure)

    ``lr``, ``weight_decay``, ``momentum``, ``kl_clip`` and ``damping`` are in ``param_groups``; of
    the last three the first group's count.

    Args:
        model: Module to train; its forward hooks see every layer. A DistributedDataParallel
            wrapper is looked through.
        lr: η. 1 is the natural gradient's own length; with ``momentum="quadratic"`` it multiplies
            the exact step.
        likelihood: What the model's output parametrises: ``"categorical"``, ``"bernoulli"``,
            ``"normal"``, ``"mse"`` or a callable output → Distribution, see
            :func:`npg.likelihoods.as_distribution`. Without it :meth:`observe` hands predictions
            over, or ``fisher="empirical"`` needs none.
        fisher: ``"sampled"`` draws one label per sample from the model's prediction, ``"exact"``
            propagates every column of the output's Fisher matrix (costs as many backward passes
            as there are outputs), ``"empirical"`` takes the loss's own gradients, which is no
            Fisher matrix.
        inverse: ``"block-diagonal"``, or ``"block-tridiagonal"`` for chains of linear layers.
        eigenbasis: Whether to measure second moments in the factors' eigenbasis (EKFAC).
        damping: λ, added to F̂ as factored Tikhonov damping. High values turn towards the
            gradient. A number, or a ``LevenbergMarquardt`` to adapt it. None: Levenberg–Marquardt
            from 1 where steps get a closure, 0.01 where they do not.
        kl_clip: δ, nats; ``math.inf`` never clips. None: 0.01, and no clip with an exact step.
        momentum: μ in [0, 1), or ``"quadratic"`` for the exact step, which needs a closure. None:
            ``"quadratic"`` where steps get a closure, 0.9 where they do not.
        weight_decay: Of an L2 term in the objective, which then is in the curvature as well.
        decoupled_weight_decay: Whether parameters shrink by lr · ``weight_decay`` instead.
        statistics_interval: Steps from one batch of statistics to the next.
        inverse_interval: Steps from one inversion to the next.
        statistics_decay: Weight of the past in the running means; 1 − 1/k in the k-th batch until
            that is above it.
        burn_in: First steps that gather statistics only.
        sharing: What layers make of positions that share their weights: ``"expand"`` or
            ``"reduce"``, see :mod:`npg.curvature.kronecker.blocks`.
        reduction: Whether the loss is a ``"mean"`` or a ``"sum"`` over samples; only the empirical
            Fisher asks.
        seed: Seeds the labels that are drawn.
        parameters: Restricts the optimizer to a part of the model (actor, critic); or groups of
            parameters, with rates of their own.

    Raises:
        ConfigurationError: If the arguments do not fit together.

    Reference:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate
        curvature", 2015; George et al., "Fast approximate natural gradient descent in
        a Kronecker-factored eigenbasis", 2018.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        likelihood: str | Callable[[Tensor], Distribution] | None = None,
        fisher: FisherKind = "sampled",
        inverse: Inverse = "block-diagonal",
        eigenbasis: bool = False,
        damping: float | LevenbergMarquardt | None = None,
        kl_clip: float | None = None,
        momentum: float | Literal["quadratic"] | None = None,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        statistics_interval: int = 1,
        inverse_interval: int = 10,
        statistics_decay: float = 0.95,
        burn_in: int = 0,
        sharing: Sharing = "expand",
        reduction: Reduction = "mean",
        seed: int = 0,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigurationError(
                "model must be the module itself, not its parameters: K-FAC listens to its layers; "
                "parameters= restricts it to some of them"
            )
        distributed = isinstance(model, DistributedDataParallel)
        model = model.module if isinstance(model, DistributedDataParallel) else model
        adaptive = isinstance(damping, LevenbergMarquardt)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "kl_clip": kl_clip,
            "damping": None if adaptive else damping,
        }
        _check(defaults)
        _check_choices(fisher, inverse, eigenbasis, sharing, reduction)
        _check_intervals(statistics_interval, inverse_interval, statistics_decay, burn_in)
        super().__init__(model, defaults, parameters)
        self.schedule = (
            damping
            if isinstance(damping, LevenbergMarquardt)
            else LevenbergMarquardt(1.0, factor=1 / 0.95, interval=5)
        )
        self.adaptive = adaptive
        self.likelihood = likelihood
        self.decoupled_weight_decay = decoupled_weight_decay
        self.statistics_interval = statistics_interval
        self.inverse_interval = inverse_interval
        self.statistics_decay = statistics_decay
        self.burn_in = burn_in
        self.distributed = distributed
        self._skipped: Tensor | int = 0  # on the device: reading it would wait for the step
        device = self.tensors()[0].device
        self.generator = torch.Generator("cpu" if device.type == "meta" else device)
        self.generator.manual_seed(seed)
        tridiagonal = inverse == "block-tridiagonal"
        self._curvature: dict[str, Any] = {
            "family": likelihood,
            "kind": fisher,
            "reduction": reduction,
            "sharing": sharing,
            "keep_rows": eigenbasis or tridiagonal,
        }
        self._inverse = (
            ChainInverse if tridiagonal else EigenbasisInverse if eigenbasis else KroneckerInverse
        )
        self._listen(model)

    def _listen(self, model: nn.Module) -> None:
        """Begins to gather curvature of what the groups hold now."""
        self.fisher = KroneckerFisher(
            model, self.tensors(), generator=self.generator, **self._curvature
        )
        self.preconditioner = self._inverse(self.fisher.blocks)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters of the model; the curvature is gathered anew.

        Args:
            param_group: ``params`` and what differs from the defaults.

        Raises:
            ConfigurationError: If a parameter is not the model's.
        """
        super().add_param_group(param_group)
        if hasattr(self, "fisher"):
            known = {id(p) for p in self.model.parameters()}
            if any(id(p) not in known for p in self.param_groups[-1]["params"]):
                self.param_groups.pop()
                raise ConfigurationError("a group's params must be parameters of the model")
            self.fisher.capture.remove()
            self._listen(self.model)

    @property
    def protocol(self) -> Protocol:  # type: ignore[override]
        """``"function"`` where a closure adapts something, ``"gradient"`` where nothing asks."""
        fixed = self.param_groups[0]
        plain = fixed["damping"] is not None and isinstance(fixed["momentum"], float | int)
        return "gradient" if plain else "function"

    @property
    def model(self) -> nn.Module:
        """The module that is listened to."""
        return self.fisher.model

    def observe(self, prediction: Distribution, mask: Tensor | None = None) -> None:
        """Takes statistics from a prediction, where the model's output alone does not say it.

        Call it between the forward pass and ``backward()``.

        Args:
            prediction: What the model just predicted, one sample per element of ``batch_shape``,
                with its graph, which is kept.
            mask: Which samples count, bool of shape ``batch_shape``. Default: all.
        """
        self.fisher.observe(prediction, mask)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> StepReport | Tensor | None:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: None after ``backward()``. Or runs the forward pass and returns (loss,
                prediction); no backward. Or torch's own kind, which calls ``backward()`` and
                returns the loss.

        Returns:
            What was done, for a forward-only closure; the loss of torch's kind; else nothing.

        Raises:
            ConfigurationError: If there is no gradient, no statistics were ever captured, or an
                exact step was asked for without a closure.
            NumericalError: If a layer's curvature could not be inverted three times in a row.
        """
        _check(self.param_groups[0])
        if closure is None:
            self._after_backward()
            return None
        exact = ClosureStep(self)
        with torch.enable_grad():
            result = exact.evaluate(closure)
        if isinstance(result, tuple):
            return exact.step(closure, *result)
        self._after_backward()
        return result

    def _after_backward(self) -> None:
        """The plain loop's step."""
        group = self.param_groups[0]
        if group["momentum"] == "quadratic" or self.adaptive:
            raise ConfigurationError(
                'momentum="quadratic" and a LevenbergMarquardt damping evaluate the loss again: '
                "pass a closure that runs the forward pass and returns (loss, prediction)"
            )
        gradients = self.gradients()
        self.update_curvature(self.fixed_damping())
        if self.extra["steps"] >= self.burn_in:
            self.move(gradients, self.preconditioner.apply(gradients))
        self.count()

    def fixed_damping(self) -> float:
        """λ where nothing adapts it."""
        given = self.param_groups[0]["damping"]
        return PLAIN_DAMPING if given is None else float(given)

    def gradients(self) -> dict[Tensor, Tensor]:
        """Gradients of the objective, with its L2 term, by parameter.

        Returns:
            What ``backward()`` left.

        Raises:
            ConfigurationError: If it left nothing.
        """
        found: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            decay = 0.0 if self.decoupled_weight_decay else group["weight_decay"]
            for p in group["params"]:
                if p.grad is not None:
                    found[p] = p.grad.add(p, alpha=decay) if decay else p.grad
        if not found:
            raise ConfigurationError(
                "step() found no gradients: call loss.backward() first, or pass a closure"
            )
        return found

    def update_curvature(self, damping: float) -> None:
        """Takes this step's statistics in, and inverts, where either is due.

        Args:
            damping: λ.

        Raises:
            ConfigurationError: If no statistics were ever captured.
        """
        fisher = self.fisher
        if fisher.capture.active:
            fisher.finish()
            if not fisher.seen:
                self.extra["uncaptured"] = self.extra.get("uncaptured", 0) + 1
            elif bool(fisher.finite()):
                fisher.update(self.statistics_decay)
                self.preconditioner.follow()
            else:
                self.extra["skipped_statistics"] = self.extra.get("skipped_statistics", 0) + 1
            fisher.clear()
        measured = any(block.updates for block in fisher.blocks)
        if not measured and not self.extra.get("skipped_statistics"):
            raise ConfigurationError(_nothing_captured(self.likelihood, fisher.kind))
        due = self.extra["steps"] % self.inverse_interval == 0 or not self.preconditioner.ready
        if measured and due:
            self.preconditioner.refresh(damping)

    def move(self, gradients: dict[Tensor, Tensor], natural: dict[Tensor, Tensor]) -> None:
        """Moves the parameters by v, without reading from the device.

        A gradient that is not finite leaves parameters and v as they were.

        Args:
            gradients: g by parameter.
            natural: F̂⁻¹g by parameter.
        """
        settings = self.param_groups[0]
        given = settings["momentum"]
        momentum = PLAIN_MOMENTUM if given is None or given == "quadratic" else float(given)
        clip = PLAIN_KL_CLIP if settings["kl_clip"] is None else settings["kl_clip"]
        rates = {p: g["lr"] for g in self.param_groups for p in g["params"] if p in natural}
        parameters = list(natural)
        steps = [u.contiguous() for u in natural.values()]
        terms = [
            torch.dot(gradients[p].flatten(), u.view(-1)).mul(rates[p] ** 2).float()
            for p, u in zip(parameters, steps, strict=True)
        ]
        inner = torch.stack(terms).sum()
        finite = torch.isfinite(inner)
        factor = finite.float() if clip == math.inf else kl_clip_factor(inner, clip)
        if self.decoupled_weight_decay:
            self.shrink(finite)
        # What is not finite is multiplied by zero, which takes a number.
        steps = [torch.nan_to_num(u, nan=0.0, posinf=0.0, neginf=0.0) for u in steps]
        if len(set(rates.values())) == 1:
            torch._foreach_mul_(steps, factor * ((momentum - 1) * rates[parameters[0]]))
        else:
            torch._foreach_mul_(steps, [(momentum - 1) * rates[p] for p in parameters])
            torch._foreach_mul_(steps, factor)
        velocity = [self._velocity(p) for p in parameters]
        torch._foreach_mul_(velocity, torch.where(finite, momentum, 1.0))
        torch._foreach_add_(velocity, steps)
        torch._foreach_add_(parameters, torch._foreach_mul(velocity, finite.float()))
        self._skipped = self._skipped + ~finite

    def shrink(self, enabled: Tensor) -> None:
        """Multiplies the parameters by 1 − η · decay, where this is enabled."""
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if group["weight_decay"] and trained:
                factor = torch.where(enabled, 1 - group["lr"] * group["weight_decay"], 1.0)
                torch._foreach_mul_(trained, factor)

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        velocity: Tensor = state["velocity"]
        return velocity

    def count(self) -> None:
        """Counts the step, and listens on those whose statistics are wanted."""
        self.extra["steps"] += 1
        steps = int(self.extra["steps"])
        self.fisher.capture.active = steps < self.burn_in or steps % self.statistics_interval == 0

    @property
    def skipped(self) -> int:
        """Steps that were not taken because a gradient was not finite."""
        return int(self.extra["skipped"]) + int(self._skipped)

    def state_dict(self) -> dict[str, Any]:
        """torch's state, and under ``"kfac"`` what must not be cast: factors, inverses, labels."""
        self.extra["skipped"] = self.skipped
        self._skipped = 0
        self.extra["damping"] = self.schedule.damping
        own = {
            "fisher": self.fisher.state(),
            "preconditioner": self.preconditioner.state(),
            "generator": self.generator.get_state(),
        }
        return {**super().state_dict(), "kfac": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, for a model of the same layers."""
        rest = copy.deepcopy(state_dict)  # what is updated in place must not be the caller's
        own = rest.pop("kfac")
        super().load_state_dict(rest)
        self.fisher.load(own["fisher"])
        self.preconditioner.load(own["preconditioner"])
        self.generator.set_state(own["generator"])
        self.schedule.damping = self.extra["damping"]
        steps = int(self.extra["steps"])
        self.fisher.capture.active = steps < self.burn_in or steps % self.statistics_interval == 0


class EKFAC(KFAC):
    """K-FAC with second moments of its own in the factors' eigenbasis: ``eigenbasis=True``.

    Args:
        model: Module to train.
        **options: As for :class:`KFAC`.
    """

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__(model, **{"eigenbasis": True, **options})


def _nothing_captured(likelihood: object, kind: str) -> str:
    if likelihood is None and kind != "empirical":
        return (
            'K-FAC must know what the model predicts: pass likelihood= ("categorical" for a '
            "cross-entropy), call observe(distribution) before backward(), or choose "
            'fisher="empirical", which takes the gradients of the loss instead'
        )
    return (
        "no statistics were captured: the model must run in training mode, with gradients, before "
        "backward(), and its output must reach the loss unchanged in place; for several or "
        "changed outputs call observe(distribution) before backward()"
    )


def _check(settings: dict[str, Any]) -> None:
    """Refuses settings that cannot work, whether given at first or changed in a group later."""
    momentum, damping, clip = settings["momentum"], settings["damping"], settings["kl_clip"]
    if not 0 < settings["lr"] < math.inf:
        raise ConfigurationError(f"lr must be positive, got {settings['lr']}")
    if not 0 <= settings["weight_decay"] < math.inf:
        raise ConfigurationError(
            f"weight_decay must not be negative, got {settings['weight_decay']}"
        )
    if not (momentum is None or momentum == "quadratic" or 0 <= momentum < 1):
        raise ConfigurationError(
            f'momentum must be in [0, 1), "quadratic" or None, got {momentum!r}'
        )
    if damping is not None and not 0 < damping < math.inf:
        raise ConfigurationError(
            f"damping must be positive (0.01 is usual), got {damping}; None adapts it"
        )
    if clip is not None and not clip > 0:
        raise ConfigurationError(f"kl_clip must be positive, got {clip}; math.inf never clips")


def _check_choices(
    fisher: str, inverse: str, eigenbasis: bool, sharing: str, reduction: str
) -> None:
    choices = {
        "fisher": (fisher, ("exact", "sampled", "empirical")),
        "inverse": (inverse, ("block-diagonal", "block-tridiagonal")),
        "sharing": (sharing, ("expand", "reduce")),
        "reduction": (reduction, ("mean", "sum")),
    }
    for name, (given, known) in choices.items():
        if given not in known:
            raise ConfigurationError(f"{name} must be one of {', '.join(known)}, got {given!r}")
    if eigenbasis and inverse == "block-tridiagonal":
        raise ConfigurationError(
            'eigenbasis=True is for inverse="block-diagonal": the chain has no common eigenbasis'
        )


def _check_intervals(statistics: int, inverse: int, decay: float, burn_in: int) -> None:
    if statistics < 1 or inverse < 1 or burn_in < 0:
        raise ConfigurationError(
            "statistics_interval and inverse_interval must be at least 1 and burn_in at least 0, "
            f"got {statistics}, {inverse} and {burn_in}"
        )
    if not 0 <= decay < 1:
        raise ConfigurationError(f"statistics_decay must be in [0, 1), got {decay}")
