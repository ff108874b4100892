"""What the optimizers have in common that probe the Hessian with random signs."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from npg import ranks
from npg.curvature.hutchinson import Signs, probe
from npg.curvature.twice_differentiable import TwiceDifferentiable
from npg.errors import ConfigurationError
from npg.optim.base import Protocol
from npg.optim.closures import run_closure
from npg.optim.finite import all_finite, usable
from npg.optim.gradient import real_view
from npg.optim.seeded import SeededOptimizer
from npg.optim.shards import refuse_shards

GRAPH_ADVICE = (
    "step(closure) with a closure that runs the forward pass and returns the loss (nothing else to "
    "do then), or call loss.backward(create_graph=True) before step()"
)


class HessianOptimizer(SeededOptimizer):
    """A :class:`GradientOptimizer` that takes z ⊙ Hz, z random signs, on every so-manieth step.

    The product needs the gradients' own graph. With a closure that runs the forward pass only the
    optimizer makes it where it is due; else ``loss.backward(create_graph=True)`` does. Either way
    the gradients are without one after the step, so that nothing keeps it alive.

    Args:
        model: Module, or parameters, or groups of them. With one in DistributedDataParallel steps
            that probe take a closure that runs the forward pass only; the ranks' curvatures are
            averaged as their gradients are.
        defaults: Settings of the groups, ``lr`` among them.
        parameters: Restricts a module to these of its parameters.
        hessian_interval: Steps from one probe to the next.
        **options: As for :class:`SeededOptimizer`.

    Raises:
        ConfigurationError: If a setting cannot work.
    """

    protocol: ClassVar[Protocol] = "hessian"
    # Lets torch's GradScaler come here with scaled gradients instead of unscaling them in place.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        defaults: dict[str, Any],
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
        *,
        hessian_interval: int,
        **options: Any,
    ) -> None:
        if hessian_interval < 1:
            raise ConfigurationError(f"hessian_interval must be at least 1, got {hessian_interval}")
        self.distributed = isinstance(model, nn.parallel.DistributedDataParallel)
        super().__init__(model, defaults, parameters, **options)
        refuse_shards(type(self).__name__, self.param_groups)
        self.hessian_interval = hessian_interval
        self.steps = 0
        self._signs: Signs | None = None
        self._means: dict[Tensor, Tensor] = {}  # of the gradients of this step, over ranks
        self._finite = False  # as far as this step's probe has seen
        self._replaces = True  # convolutions or attention, as far as is known

    @property
    def needs_graph(self) -> bool:
        """Whether the next step probes, and so wants ``backward(create_graph=True)``."""
        return self.steps % self.hessian_interval == 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Tensor | None:  # type: ignore[override]
        """Takes one step.

        Args:
            closure: Runs the forward pass and returns the loss, or (loss, prediction); gradients of
                before are replaced. Or torch's kind, which calls ``backward()``, with
                ``create_graph=True`` where :attr:`needs_graph`. Default: the gradients are there.

        Returns:
            The closure's loss.

        Raises:
            ConfigurationError: If a setting cannot work, or a probe is due and there is no graph.
        """
        if getattr(self, "grad_scale", None) is not None:
            raise ConfigurationError(
                f"{type(self).__name__} takes no GradScaler, which scales the curvature as well: "
                "use autocast with bfloat16, which needs none"
            )
        for group in self.param_groups:
            self._read(group)
        parameters = [p for g in self.param_groups for p in g["params"] if p.requires_grad]
        loss, differentiated = None, False
        if closure is not None:
            loss, differentiated = self._evaluate(closure, parameters)
        if self.distributed and self.needs_graph and not differentiated:
            raise ConfigurationError(
                f"{type(self).__name__} probes the Hessian on this step, and the graph of averaged "
                "gradients is not to be had: with DistributedDataParallel give step a closure "
                "that runs the forward pass and returns the loss"
            )
        self._finite = False
        try:
            if self.needs_graph:
                self._probe(must_have_graph=not differentiated)
        finally:
            for p in parameters:
                if p.grad is not None:  # in place a view would refuse
                    p.grad = self._means.get(p, p.grad).detach()
            self._means = {}
        self._move()
        self.steps += 1
        return loss

    def _evaluate(
        self, closure: Callable[[], Any], parameters: list[Tensor]
    ) -> tuple[Tensor, bool]:
        """Runs the closure, and differentiates the loss unless it did so itself."""
        mode = TwiceDifferentiable() if self.needs_graph and self._replaces else None
        result, called_backward = run_closure(closure, parameters, mode or nullcontext())
        if mode is not None:
            self._replaces = mode.replaced > 0  # else looking at every call is for nothing
        loss = result[0] if isinstance(result, tuple) else result
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            raise ConfigurationError(
                f"{type(self).__name__}: the closure must return the loss, a scalar tensor, or "
                f"(loss, prediction), got {type(loss).__name__}"
            )
        if called_backward:
            return loss.detach(), False
        if not loss.requires_grad:
            raise ConfigurationError(
                f"{type(self).__name__}: the closure's loss has no graph: compute it from the "
                "model's output, with gradients"
            )
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                loss, parameters, create_graph=self.needs_graph, allow_unused=True
            )
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        if self.distributed:
            self._average(parameters)
        return loss.detach(), True

    def _average(self, parameters: list[Tensor]) -> None:
        """Finds the ranks' mean gradients, and lets the probe see the same parameters on each."""
        means = ranks.mean_over_ranks([p.grad for p in parameters], parameters)
        for p, mean in zip(parameters, means, strict=True):
            if mean is not None:
                self._means[p] = mean
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad

    def _probe(self, *, must_have_graph: bool) -> None:
        """Takes z ⊙ Hz into the curvature of every parameter that has a gradient."""
        found = [
            (group, p) for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        dense = [p for _, p in found if p.grad is not None and p.grad.layout == torch.strided]
        if len(dense) < len(found) or not found:
            return  # refused, or nothing to do, in _move()
        gradients = [p.grad for p in dense if p.grad is not None]
        if must_have_graph and not any(g.requires_grad for g in gradients):
            raise ConfigurationError(
                f"{type(self).__name__} probes the Hessian on this step, and the gradients have no "
                f"graph: {GRAPH_ADVICE}"
            )
        if self._signs is None or not self._signs.fits(dense):
            self._signs = Signs(dense)
        signs = self._signs.draw(self.generator)
        products = probe(gradients, dense, signs)
        if self.distributed:
            gradients = [self._means[p] for p in dense]
            products = [m for m in ranks.mean_over_ranks(products, dense) if m is not None]
        self._finite = all_finite(zip(gradients, products, strict=True))
        good = [True] * len(dense)
        if not self._finite:
            states = [self.state[p] for p in dense]
            good = usable(products, states, "skipped_statistics")
        pairs = {
            p: (real_view(z), real_view(product))
            for p, z, product, finite in zip(dense, signs, products, good, strict=True)
            if finite
        }
        for group in self.param_groups:
            mine = [p for p in group["params"] if p in pairs]
            if mine:
                self._measure(
                    group,
                    [self.state[p] for p in mine],
                    [pairs[p][0] for p in mine],
                    [pairs[p][1] for p in mine],
                )

    def _usable(self, gradients: list[Tensor], states: list[dict[str, Any]]) -> list[bool]:
        return [True] * len(states) if self._finite else super()._usable(gradients, states)

    def _measure(
        self,
        group: dict[str, Any],
        states: list[dict[str, Any]],
        signs: list[Tensor],
        products: list[Tensor],
    ) -> None:
        """Lets z and Hz enter the curvature."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """All attributes but the memory for signs."""
        return {**super().__getstate__(), "_signs": None}

    def state_dict(self) -> dict[str, Any]:
        """torch's state, the generator's, and the steps taken under ``"steps"``."""
        return {**super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        rest = dict(state_dict)
        steps = int(rest.pop("steps", 0))
        super().load_state_dict(rest)
        self.steps = steps
