"""L-BFGS, with line searches for whole data sets and with damping for minibatches."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.linalg import empty_flat
from npg.linalg.quasi_newton import curvature_damped, powell_damped, two_loop
from npg.optim.line_search import LineSearchOptimizer, Search
from npg.optim.quasi_newton import check_powell_damping, converted, first_scale, has_curvature


class LBFGS(LineSearchOptimizer):
    """θ ← θ − α η H g, H the BFGS updates of γI by the last pairs (s, y), γ = sᵀy/yᵀy of the last.

    On a whole data set, with the line search:

        optimizer = LBFGS(model, iterations=20)
        report = optimizer.step(lambda: F.cross_entropy(model(x), y))

    On minibatches without one, and with damping. Every step differences gradients of the same
    batch, so that y is curvature and not the batches' noise; it costs a second evaluation:

        optimizer = LBFGS(model, lr=0.1, line_search=None, powell_damping=0.2, least_curvature=0.1)

    Args:
        model: Module to train, or its parameters.
        lr: η, multiplier of the first trial, and of the step where nothing is searched for.
        history_size: Pairs that are kept: 5 to 20. More follow the curvature better, at 4 P
            operations and 2 P numbers each.
        line_search: See :class:`LineSearchOptimizer`.
        powell_damping: μ in [0, 1): a pair with sᵀy < μ yᵀHy is moved until it is not. 0 leaves out
            pairs without sᵀy > 0, of which a strong Wolfe search finds none.
        least_curvature: ε in [0, 1): y is then moved until sᵀy ≥ ε sᵀs, so that H's eigenvalues
            are bounded by the batches' noise no more. High values shorten steps.
        iterations: Per step, see :class:`IteratedOptimizer`.
        deterministic: Whether to check the closure, see there.
        parameters: Restricts a module to a part of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work.

    Reference:
        Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", 1989;
        Goldfarb, Ren and Bahamou, "Practical quasi-Newton methods for training deep neural
        networks", 2020, for the two stages of damping.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 1.0,
        history_size: int = 10,
        line_search: Search = "strong-wolfe",
        powell_damping: float = 0.0,
        least_curvature: float = 0.0,
        iterations: int = 1,
        deterministic: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        check_powell_damping(powell_damping)
        if not 0 <= least_curvature < 1:
            raise ConfigurationError(f"least_curvature must be in [0, 1), got {least_curvature}")
        if history_size < 1:
            raise ConfigurationError(f"history_size must be at least 1, got {history_size}")
        super().__init__(
            model,
            lr=lr,
            line_search=line_search,
            iterations=iterations,
            deterministic=deterministic,
            parameters=parameters,
        )
        self.history_size = history_size
        self.powell_damping = powell_damping
        self.least_curvature = least_curvature
        # (s, y, sᵀy), oldest first.
        self._pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def experienced(self) -> bool:
        """Whether there are pairs."""
        return bool(self._pairs)

    def natural(self, gradient: Tensor) -> Tensor:
        """H g, by the two loops."""
        if self._pairs and len(self._pairs[0][0]) != len(gradient):
            self.forget()  # other parameters than before
        if not self._pairs:
            return gradient
        s, y, inner = zip(*self._pairs, strict=True)
        return two_loop(gradient, s, y, inner[-1] / y[-1].dot(y[-1]), inner)

    def learn(self, step: Tensor, before: Tensor, after: Tensor) -> None:
        """Keeps the pair, damped as was asked for."""
        s, y = step, after - before
        if self.powell_damping:
            product = self.natural(y) if self._pairs else y * first_scale(s, y, before)
            s = powell_damped(s, y, product, self.powell_damping)
        if self.least_curvature:
            y = curvature_damped(s, y, self.least_curvature)
        if has_curvature(s, y):
            self._pairs.append((s, y, s.dot(y).unsqueeze(0)))
            del self._pairs[: -self.history_size]

    def forget(self) -> bool:
        """Drops all pairs."""
        known = bool(self._pairs)
        self._pairs = []
        return known

    def state_dict(self) -> dict[str, Any]:
        """torch's state, the counters, and the pairs."""
        return {**super().state_dict(), "lbfgs": list(self._pairs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave.

        Args:
            state_dict: Of an optimizer of as many parameters.

        Raises:
            ConfigurationError: If it does not fit; then nothing of it was loaded.
        """
        rest = dict(state_dict)
        pairs = rest.pop("lbfgs", [])
        size = sum(p.numel() for p in self.tensors())
        if pairs and len(pairs[0][0]) != size:
            raise ConfigurationError(
                f"the state's pairs are of {len(pairs[0][0])} parameters, this LBFGS has {size}"
            )
        super().load_state_dict(rest)
        self._pairs = converted(copy.deepcopy(pairs), empty_flat(self.tensors()))
