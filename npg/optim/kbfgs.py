"""K-BFGS: quasi-Newton steps with Kronecker-factored inverses."""

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from npg.curvature.kronecker import MatrixBlock
from npg.curvature.kronecker.means import Evaluated, Inputs, LayerMeans
from npg.errors import ConfigurationError
from npg.optim.base import Closure, FunctionOptimizer, StepReport
from npg.optim.gradient import check_range
from npg.optim.objective import Objective, rounding_of
from npg.preconditioners import KroneckerBFGS
from npg.steps import kl_clip_factor


class KBFGS(FunctionOptimizer):
    """θ ← θ − ν η H_G V H_A,  V ← β V + (1 − β) ∇W, with BFGS inverses H_G, H_A of every layer.

    H_A follows (A + √λ I)⁻¹, A the running second moment of the layer's inputs, by BFGS along
    s = H_A ā. H_G follows the inverse curvature in the layer's outputs h, from how the mean of h
    and the gradient in it change over the step, which takes a second forward and backward pass
    on the same batch. Nothing is ever factorised after the first step.

        def closure():  # the forward pass only
            return F.cross_entropy(model(x), y)
        report = optimizer.step(closure)

    A convolution is a linear layer on patches: A and the mean of h are averages over entries and
    positions, and the gradient in h is summed over positions, as all of them move with the one
    weight. Grouped layers have inverses per group; an embedding's A is a diagonal, and inverted as
    it is. Normalisation layers, and parameters of no known layer, have H_G alone: BFGS in the
    parameters themselves, up to 256 of them as a matrix, beyond by the last 10 pairs.

    ν = min(1, √(2δ / Σ η² ⟨V, H_G V H_A⟩)) keeps the step's length in the inverses' own metric
    below δ: before they know the curvature they would leap.

    A loss or gradient that is not finite, a zero gradient and a rate of zero leave everything as it
    was; a direction that is not finite leaves all but H_A, which keeps the batch. Such steps count
    as ``skipped``. One after which loss or gradient are not finite, or after which the batch's loss
    has risen by more than the step's length squared in that metric, is taken back bit for bit, and
    counts as ``rejected``: V is forgotten, H_A keeps the batch, and H_G the pair if it is finite.

    Published are η = 0.3 and λ = 0.3 without a clip. With one, whole steps and less damping trained
    an autoencoder and an MLP on Fashion-MNIST faster.

    ``lr`` and ``weight_decay`` are the groups' own; of ``damping``, ``momentum`` and ``kl_clip``
    the first group's count.

    Args:
        model: Module to train; its layers are listened to while the closure runs.
        lr: η. High values learn faster until the first steps overshoot.
        damping: λ; √λ is added to A and is the least curvature that H_G believes, in the loss's
            units. High values turn towards the gradient. A change enters with the pairs that
            follow it.
        momentum: β in [0, 1), from V = 0: the first steps are short.
        kl_clip: δ, in the loss's units; where the loss is a negative log-likelihood, nats of KL
            divergence by the inverses' model. Low values keep the first steps short; ``math.inf``
            never clips.
        weight_decay: Of an L2 term in the objective, which enters the gradient alone.
        decoupled_weight_decay: Whether parameters shrink by lr · ``weight_decay`` instead.
        memory: K-BFGS(L): pairs to keep per factor in place of matrices, 100 in the paper. Nothing
            then grows with the square of a layer's width; A is the batch's own, and H_A begins
            with its diagonal. None keeps matrices.
        statistics_decay: Weight of the past in A and in the means of the pairs of H_G.
        deterministic: Whether to check that the closure agrees with itself: by evaluating it once
            more at the first step, and again whenever the loss rose.
        parameters: Restricts the optimizer to a part of the model; or groups of parameters, with
            rates of their own.

    Raises:
        ConfigurationError: If the arguments do not fit together.

    Reference:
        Goldfarb, Ren and Bahamou, "Practical quasi-Newton methods for training deep neural
        networks", 2020; Ren, Bahamou and Goldfarb, "Kronecker-factored quasi-Newton methods for
        deep learning", 2021, for convolutions.
    """

    needs_prediction = False

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        damping: float = 0.1,
        momentum: float = 0.9,
        kl_clip: float = 0.1,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        memory: int | None = None,
        statistics_decay: float = 0.9,
        deterministic: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConfigurationError(
                "model must be the module itself, not its parameters: K-BFGS listens to its "
                "layers; parameters= restricts it to some of them"
            )
        if memory is not None and memory < 1:
            raise ConfigurationError(f"memory must be at least 1, or None, got {memory}")
        check_range({"statistics_decay": statistics_decay}, "statistics_decay", 0, 1)
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        defaults |= {"damping": damping, "kl_clip": kl_clip}
        _check([defaults])
        super().__init__(model, defaults, parameters)
        if self.distributed and memory is not None:
            raise ConfigurationError(
                f"memory={memory} keeps the rows of this rank's inputs, which those of other ranks "
                "of DistributedDataParallel do not have: take memory=None"
            )
        _check(self.param_groups)
        self.decoupled_weight_decay = decoupled_weight_decay
        self.memory = memory
        self.statistics_decay = statistics_decay
        self.deterministic = deterministic
        self._listen(model)

    def _listen(self, model: nn.Module) -> None:
        """Begins anew with what the groups hold now."""
        self._told: set[Tensor] = set()  # which parameters a warning was about
        self.layers = LayerMeans(model, self.tensors())
        self._vectors = {
            p
            for block in self.layers.blocks
            if not isinstance(block, MatrixBlock)
            for p in block.parameters
        }
        self.preconditioner = KroneckerBFGS(
            self.layers.blocks,
            damping=self.param_groups[0]["damping"],
            memory=self.memory,
            decay=self.statistics_decay,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters of the model; all inverses begin anew.

        Args:
            param_group: ``params`` and what differs from the defaults.

        Raises:
            ConfigurationError: If a parameter is not the model's, or a setting cannot work.
        """
        super().add_param_group(param_group)
        if hasattr(self, "layers"):
            self.check_newest_group(self.layers.model, _check)
            self.layers.capture.remove()
            self._listen(self.layers.model)

    @torch.no_grad()
    def step(self, closure: Closure) -> StepReport:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: Runs the forward pass and returns the loss, or (loss, prediction); no
                backward. It runs twice, at the first step three times, all under the first one's
                random numbers and running statistics.

        Returns:
            What was done; ``step_length`` is ν η of the first group.

        Raises:
            ConfigurationError: If the closure is of another kind or disagrees with itself, or a
                setting cannot work.
        """
        _check(self.param_groups)
        if not callable(closure):
            raise ConfigurationError(f"{type(self).__name__}: {self.advice}")
        settings = self.param_groups[0]
        self.preconditioner.damping = float(settings["damping"])
        objective = Objective(self, closure)
        loss, before = self._evaluate(objective, first=True)
        if not before.gradients:
            raise ConfigurationError(
                "KBFGS: the loss does not depend on any of the parameters: are these the "
                "parameters of the model that the closure runs?"
            )
        if self.deterministic and not self.extra["steps"]:
            objective.check_again(loss)
        self.extra["steps"] += 1
        gradients = self._decayed(before.gradients)
        norm = _norm(gradients.values())
        known: dict[str, Any] = {"gradient_norm": norm, "damping": self.preconditioner.damping}
        obstacle = _obstacle(loss, norm, before) or self.standstill()
        if obstacle:
            return self.skip(loss, obstacle, evaluations=objective.evaluations, **known)

        self.preconditioner.update(before)
        self._tell_of_unseen(before)
        velocity = self._velocity(gradients)
        direction = self.preconditioner.apply(velocity)
        inner = self._inner(velocity, direction)
        if not math.isfinite(inner):
            reason = "step is not finite"
            return self.skip(loss, reason, evaluations=objective.evaluations, **known)
        clip = settings["kl_clip"]
        factor = 1.0 if clip == math.inf else float(kl_clip_factor(inner, clip))
        accepted = False
        objective.remember()
        try:
            self._move(direction, factor)
            after, second = self._evaluate(objective, first=False)
            finite = math.isfinite(after) and second.finite()
            if finite:
                self.preconditioner.follow(before, second)
            allowed = factor**2 * inner + rounding_of(loss, next(iter(gradients)).dtype)
            accepted = finite and after - loss <= allowed  # the step's length, squared
        finally:
            if not accepted:
                objective.restore()
                self.state.clear()  # of velocities, which is all that it holds
        if accepted:
            reason = "quasi-Newton step"
            for p, v in velocity.items():
                self.state[p]["velocity"] = v
        else:
            reason = "the loss rose" if finite else "loss or gradient is not finite after it"
            self.extra["rejected"] += 1
            if finite and self.deterministic:
                objective.check_again(loss)
        return StepReport(
            loss,
            after if accepted else loss,
            accepted,
            reason,
            kl=math.nan if accepted else 0.0,
            fraction=float(accepted),
            step_length=factor,
            evaluations=objective.evaluations,
            **known,
        )

    def _evaluate(self, objective: Objective, *, first: bool) -> tuple[float, Evaluated]:
        """Evaluates and differentiates; a second time it takes what pairs are made of alone."""
        wanted = [p for p in self.tensors() if first or p in self._vectors]
        kept: Inputs = "none"
        if first:
            kept = "moment" if self.memory is None else "rows"
        with self.layers.listening():
            loss, _ = objective.evaluate()
            with self.graph_needed():
                found = self.layers.measure(loss, wanted, kept)
        if self.distributed:
            found.average()
        return float(loss), found

    def _tell_of_unseen(self, evaluated: Evaluated) -> None:
        """Warns, once, of layers that get gradients and were never called."""
        inverses = zip(self.layers.blocks, self.preconditioner.outputs, strict=True)
        unseen = {
            p
            for block, inverse in inverses
            if inverse is None
            for p in block.parameters
            if p in evaluated.gradients
        }
        if unseen - self._told:
            names = [n for n, p in self.layers.model.named_parameters() if p in unseen]
            warnings.warn(
                f"{', '.join(names)} have gradients, but their layers are not called, so that they "
                "move along the bare gradient: let the forward pass call the layers instead of "
                "taking their weights, or leave them to another optimizer by parameters=",
                stacklevel=4,
            )
            self._told |= unseen

    def _decayed(self, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Gradients of the objective, with its L2 term."""
        if self.decoupled_weight_decay:
            return dict(gradients)
        decays = self._by_parameter("weight_decay")
        return {p: g.add(p, alpha=decays[p]) if decays[p] else g for p, g in gradients.items()}

    def _velocity(self, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """V with this step's gradient in it; nothing is changed yet."""
        share = 1 - float(self.param_groups[0]["momentum"])
        # torch's state is a defaultdict: what is asked of it by [] would be in it afterwards
        known = {p: entry["velocity"] for p, entry in self.state.items() if "velocity" in entry}
        return {
            p: known[p].lerp(g, share) if p in known else g * share for p, g in gradients.items()
        }

    def _inner(
        self, velocity: Mapping[Tensor, Tensor], direction: Mapping[Tensor, Tensor]
    ) -> float:
        """Σ η² ⟨V, H_G V H_A⟩."""
        rates = self._by_parameter("lr")
        return sum(
            rates[p] ** 2 * float(torch.dot(v.flatten().to(direction[p]), direction[p].flatten()))
            for p, v in velocity.items()
        )

    def _move(self, direction: Mapping[Tensor, Tensor], factor: float) -> None:
        """Takes the step, shortened by a factor."""
        rates, decays = self._by_parameter("lr"), self._by_parameter("weight_decay")
        for p, d in direction.items():
            if self.decoupled_weight_decay and decays[p]:
                p.mul_(1 - rates[p] * decays[p])
            p.add_(d.to(p.dtype), alpha=-rates[p] * factor)

    def _by_parameter(self, name: str) -> dict[Tensor, float]:
        """A setting of the groups, per parameter."""
        return {p: float(group[name]) for group in self.param_groups for p in group["params"]}

    def state_dict(self) -> dict[str, Any]:
        """torch's state, and under ``"kbfgs"`` what must not be cast: moments, inverses, pairs."""
        return {**super().state_dict(), "kbfgs": self.preconditioner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, for a model of the same layers.

        Args:
            state_dict: Of this class, with the same ``memory``.

        Raises:
            ConfigurationError: If it does not fit; then nothing of it was loaded.
        """
        if "kbfgs" not in state_dict:
            raise ConfigurationError("the state is not K-BFGS's: it has no inverses")
        rest = copy.deepcopy(state_dict)  # what is updated in place must not be the caller's
        inverses = rest.pop("kbfgs")
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, entry in rest["state"].items():
            if "velocity" not in entry:  # empty, as a look-up leaves it
                continue
            found = entry["velocity"].shape
            if i >= len(parameters) or found != parameters[i].shape:
                raise ConfigurationError(
                    f"the state is of another model: parameter {i} of it has shape {tuple(found)}"
                )
        self.preconditioner.load_state_dict(inverses)
        super().load_state_dict(rest)


def _obstacle(loss: float, norm: float, evaluated: Evaluated) -> str:
    """Why no step can be taken from here; empty if one can."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        return "loss or gradient is not finite"
    if norm == 0:
        return "zero gradient"
    return "" if evaluated.finite() else "inputs or outputs of a layer are not finite"


def _norm(tensors: Iterable[Tensor]) -> float:
    norms = torch._foreach_norm(list(tensors))
    return float(torch.linalg.vector_norm(torch.stack([norm.float() for norm in norms])))


def _check(groups: Sequence[dict[str, Any]]) -> None:
    """Refuses settings that cannot work, given at first or changed in a group later."""
    for group in groups:
        check_range(group, "lr", 0, math.inf)
        check_range(group, "weight_decay", 0, math.inf)
    check_range(groups[0], "momentum", 0, 1)
    check_range(groups[0], "damping", 0, math.inf)
    if groups[0]["damping"] == 0:
        raise ConfigurationError("damping must be positive (0.1 is usual), got 0")
    if not groups[0]["kl_clip"] > 0:
        raise ConfigurationError(
            f"kl_clip must be positive, got {groups[0]['kl_clip']}; math.inf never clips"
        )
