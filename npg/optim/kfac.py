"""K-FAC in an unchanged training loop, with the true Fisher."""

import copy
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.parallel import DistributedDataParallel

from npg.curvature.kronecker import FisherKind, KroneckerFisher, Reduction, Sharing
from npg.errors import ConfigurationError
from npg.optim.base import Closure, Protocol, StepReport
from npg.optim.kfac_closure import ClosureStep
from npg.optim.kfac_curvature import update_curvature
from npg.optim.kfac_groups import decayed_gradients
from npg.optim.kfac_plain import motion
from npg.optim.kfac_settings import (
    PLAIN_DAMPING,
    check_choices,
    check_dtype,
    check_groups,
    check_intervals,
    check_samples,
)
from npg.optim.kfac_state import KFACState
from npg.preconditioners import ChainCheck, ChainInverse, EigenbasisInverse, KroneckerInverse
from npg.preconditioners.assignment import Assignment
from npg.steps import LevenbergMarquardt

Inverse = Literal["block-diagonal", "block-tridiagonal"]


class KFAC(KFACState):
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
    the last three the first group's count. Counters are in :attr:`extra`: steps that were
    ``rejected`` by the second evaluation, those ``skipped`` because a gradient was not finite,
    batches of statistics that were not finite (``skipped_statistics``) or were never seen
    (``uncaptured``).

    Args:
        model: Module to train; its forward hooks see every layer. A DistributedDataParallel
            wrapper is looked through.
        lr: η, the same for a layer's parameters where steps are clipped. 1 is the natural
            gradient's own length; with ``momentum="quadratic"`` it multiplies the exact step.
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
            gradient. A number, or a ``LevenbergMarquardt`` to adapt a copy of. None:
            Levenberg–Marquardt from 1 where steps get a closure and a likelihood (or prediction) is
            known, 0.01 elsewhere. With an
            adapted λ and exact steps the factors' damping goes its own way from there: whenever
            they are inverted, the damped model's reduction chooses among it and its neighbours; one
            that stood is left alone for the next inversion.
        kl_clip: δ, nats, of F̂ with its damping; ``math.inf`` never clips. None: 0.01, and no clip
            with an exact step. High values trust F̂ where it was not measured.
        momentum: μ in [0, 1), or ``"quadratic"`` for the exact step, which needs a closure. None:
            ``"quadratic"`` where steps get a closure and a likelihood (or prediction) is known, 0.9
            elsewhere.
        weight_decay: Of an L2 term in the objective, which then is in the curvature as well: in
            F̂ the largest of the groups', in the exact step each its own.
        decoupled_weight_decay: Whether parameters shrink by lr · ``weight_decay`` instead.
        statistics_interval: Steps from one batch of statistics to the next. 1 follows closest.
        inverse_interval: Steps from one inversion to the next.
        inverse_dtype: What layers' inverses are kept in and multiplied by. ``torch.bfloat16``
            halves their memory and, on processors with instructions for it, the time of their
            products; layers where that would change xᵀF̂⁻¹x by more than a tenth along some
            direction keep their own dtype. None: the parameters' own. For K-FAC's plain inverse
            only.
        statistics_decay: Weight of the past in the running means; 1 − 1/k in the k-th batch until
            that is above it.
        quadratic_samples: Entries of the batch, the first so many, on which the exact step measures
            the curvature along its two directions. More make each step better and slower; None
            takes the whole batch. Ranks of ``torch.distributed`` share them out.
        burn_in: First steps that gather statistics only; the inverse follows after the last.
        sharing: What layers make of positions that share their weights: ``"expand"`` or
            ``"reduce"``, see :mod:`npg.curvature.kronecker.blocks`.
        reduction: Whether the loss is a ``"mean"`` or a ``"sum"`` over samples; only the empirical
            Fisher asks.
        assignment: Of the inverses to the ranks of ``torch.distributed``, which share them out by
            what they cost. ``"communication-optimal"`` sends every inverse to every rank, once per
            inversion; with ``"memory-optimal"`` one rank keeps it, and sends what it makes of the
            layer's gradient, on every step: less memory, more messages. All ranks then call
            ``state_dict`` together.
        seed: Seeds the labels that are drawn.
        parameters: Restricts the optimizer to a part of the model (actor, critic); or groups of
            parameters, with rates of their own.
        distributed: Whether a step sees this rank's part of the batch, and statistics are averaged
            over the ranks of ``torch.distributed``, as gradients then have to be. Default: whether
            the model is in DistributedDataParallel, which does the latter.

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
        statistics_interval: int = 3,
        inverse_interval: int = 10,
        inverse_dtype: torch.dtype | None = None,
        statistics_decay: float = 0.95,
        quadratic_samples: int | None = 192,
        burn_in: int = 0,
        sharing: Sharing = "expand",
        reduction: Reduction = "mean",
        assignment: Assignment = "communication-optimal",
        seed: int = 0,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
        distributed: bool | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigurationError(
                "model must be the module itself, not its parameters: K-FAC listens to its layers; "
                "parameters= restricts it to some of them"
            )
        wrapped = isinstance(model, DistributedDataParallel)
        model = model.module if isinstance(model, DistributedDataParallel) else model
        self.adaptive = isinstance(damping, LevenbergMarquardt)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "kl_clip": kl_clip,
            "damping": None if self.adaptive else damping,
        }
        check_groups([defaults])
        check_choices(fisher, inverse, eigenbasis, sharing, reduction, assignment)
        check_dtype(inverse_dtype, plain=inverse == "block-diagonal" and not eigenbasis)
        check_intervals(statistics_interval, inverse_interval, statistics_decay, burn_in)
        check_samples(quadratic_samples)
        super().__init__(model, defaults, parameters)
        self.distributed = wrapped if distributed is None else distributed
        check_groups(self.param_groups)
        self.extra |= {"skipped_statistics": 0, "uncaptured": 0}
        self.schedule = (
            copy.copy(damping)
            if isinstance(damping, LevenbergMarquardt)
            else LevenbergMarquardt(1.0, factor=1 / 0.95, interval=5)
        )
        self.extra |= {"factor_damping": self.schedule.damping, "factor_damping_stood": False}
        self.extra["listen_until"] = 0
        self.likelihood = likelihood
        self.decoupled_weight_decay = decoupled_weight_decay
        self.statistics_interval = statistics_interval
        self.inverse_interval = inverse_interval
        self._inverse_dtype = {} if inverse_dtype is None else {"dtype": inverse_dtype}
        self.statistics_decay = statistics_decay
        self.quadratic_samples = quadratic_samples
        self.burn_in = burn_in
        self.told: set[int] = set()  # which parameters a warning was about
        self._skipped = 0
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
            "distributed": self.distributed,
        }
        self._inverse: type[KroneckerInverse] = (
            ChainInverse if tridiagonal else EigenbasisInverse if eigenbasis else KroneckerInverse
        )
        self.assignment: Assignment = assignment
        self._listen(model)

    def _listen(self, model: nn.Module) -> None:
        """Begins to gather curvature of what the groups hold now."""
        self.fisher = KroneckerFisher(
            model, self.tensors(), generator=self.generator, **self._curvature
        )
        self.preconditioner = self._inverse(
            self.fisher.blocks,
            distributed=self.distributed,
            decay=self.statistics_decay,
            assignment=self.assignment,
            **self._inverse_dtype,
        )
        self.chain: ChainCheck | None = None
        if isinstance(self.preconditioner, ChainInverse):
            self.chain = ChainCheck(model, self.preconditioner.layers)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters of the model; the curvature is gathered anew.

        Args:
            param_group: ``params`` and what differs from the defaults.

        Raises:
            ConfigurationError: If a parameter is not the model's, or a setting cannot work.
        """
        super().add_param_group(param_group)
        if hasattr(self, "fisher"):
            self.check_newest_group(self.model, check_groups)
            self.fisher.capture.remove()
            if self.chain is not None:
                self.chain.stop()
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
        if self.chain is not None and self.fisher.capture.active:
            self.chain.observe(prediction)
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
            ConfigurationError: If there is no gradient, no statistics were ever captured, the
                closure is of neither kind, or an exact step was asked for without a closure.
            NumericalError: If a layer's curvature could not be inverted three times in a row.
        """
        check_groups(self.param_groups)
        if closure is None:
            self._after_backward()
            return None
        evaluated = ClosureStep(self)
        result = evaluated.evaluate(closure)
        if isinstance(result, tuple):
            return evaluated.step(closure, *result)
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
        gradients = decayed_gradients(self.param_groups, decoupled=self.decoupled_weight_decay)
        update_curvature(self, self.fixed_damping())
        if self.extra["steps"] >= self.burn_in:
            if self.preconditioner.ready:
                motion(self, gradients).take()
            else:  # nothing finite was seen yet
                self.extra["skipped"] += 1
        self.count()

    def fixed_damping(self) -> float:
        """λ where nothing adapts it."""
        given = self.param_groups[0]["damping"]
        return PLAIN_DAMPING if given is None else float(given)
