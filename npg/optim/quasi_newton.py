"""Dense quasi-Newton optimizers, for models of up to some thousand parameters."""

import copy
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from npg.errors import ConfigurationError
from npg.linalg import empty_flat
from npg.linalg.quasi_newton import (
    OuterProducts,
    bfgs_inverse_products,
    dfp_inverse_products,
    powell_damped,
)
from npg.optim.iterated import check_dense_size
from npg.optim.line_search import LineSearchOptimizer, Search
from npg.steps import StrongWolfe


class DenseQuasiNewton(LineSearchOptimizer):
    """θ ← θ − α η H g, H an estimate [P, P] of the inverse Hessian by steps and gradients' changes.

    A direction costs one product of H with a vector, what is learned from it a few outer products,
    added in one pass; nothing is factorised. Before the first pair is taken in, H is scaled to the
    curvature that this pair shows.

    Args:
        model: Module to train, or its parameters: at most 20,000 numbers.
        lr: η, multiplier of the first trial. 1 is the method's own.
        line_search: See :class:`LineSearchOptimizer`.
        powell_damping: μ in [0, 1): a pair with sᵀy < μ yᵀHy is moved until it is not. 0 leaves out
            pairs without sᵀy > 0, of which a strong Wolfe search finds none; 0.2 is usual for
            other searches and for minibatches.
        iterations: Per step, see :class:`IteratedOptimizer`.
        deterministic: Whether to check the closure, see there.
        parameters: Restricts a module to a part of its parameters.

    Raises:
        ConfigurationError: If a setting cannot work, or there are too many parameters.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 1.0,
        line_search: Search = "strong-wolfe",
        powell_damping: float = 0.0,
        iterations: int = 1,
        deterministic: bool = True,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
    ) -> None:
        check_powell_damping(powell_damping)
        super().__init__(
            model,
            lr=lr,
            line_search=line_search,
            iterations=iterations,
            deterministic=deterministic,
            parameters=parameters,
        )
        self.powell_damping = powell_damping
        self._inverse: Tensor | None = None
        # A gradient and H times it: where a step ends is where the next one begins.
        self._known: tuple[Tensor, Tensor] | None = None

    def check_groups(self, groups: list[dict[str, Any]]) -> None:
        """Refuses groups that cannot work, or have too many parameters for a dense matrix."""
        super().check_groups(groups)
        check_dense_size(self, "LBFGS, or KBFGS for a network")

    @property
    def inverse_hessian(self) -> Tensor | None:
        """H [P, P]; None before the first step."""
        return self._inverse

    @property
    def experienced(self) -> bool:
        """Whether there is an H."""
        return self._inverse is not None

    @abstractmethod
    def update(self, s: Tensor, y: Tensor, product: Tensor) -> OuterProducts:
        """What H gains by a pair, from H y."""

    def natural(self, gradient: Tensor) -> Tensor:
        """H g, once for each g."""
        if self._inverse is not None and len(self._inverse) != len(gradient):
            self.forget()  # other parameters than before
        if self._inverse is None:
            return gradient
        if self._known is None or not torch.equal(self._known[0], gradient):
            self._known = gradient, self._inverse @ gradient
        return self._known[1]

    def learn(self, step: Tensor, before: Tensor, after: Tensor) -> None:
        """Updates H, and H g with it: one product with H, of the new gradient."""
        y = after - before
        if self._inverse is None:
            scale = first_scale(step, y, before)
            self._inverse = torch.eye(len(y), dtype=y.dtype, device=y.device).mul_(scale)
            self._known, new = (before, before * scale), after * scale
        else:
            new = self._inverse @ after
        product = new - self.natural(before)
        s = step
        if self.powell_damping:
            s = powell_damped(s, y, product, self.powell_damping)
        if not self.fits(s, y):
            self._known = after, new
            return
        gain = self.update(s, y, product)
        gain.add_(self._inverse)
        self._known = after, new + gain @ after

    def fits(self, s: Tensor, y: Tensor) -> bool:
        """Whether a pair can be learned from."""
        return has_curvature(s, y)

    def forget(self) -> bool:
        """Drops H."""
        known = self._inverse is not None
        self._inverse = self._known = None
        return known

    def state_dict(self) -> dict[str, Any]:
        """torch's state, the counters, and H."""
        own = {"inverse": self._inverse, "known": self._known}
        return {**super().state_dict(), "quasi-newton": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave.

        Args:
            state_dict: Of an optimizer of as many parameters.

        Raises:
            ConfigurationError: If it does not fit; then nothing of it was loaded.
        """
        rest = dict(state_dict)
        own = rest.pop("quasi-newton", {"inverse": None, "known": None})
        size = sum(p.numel() for p in self.tensors())
        if own["inverse"] is not None and len(own["inverse"]) != size:
            raise ConfigurationError(
                f"the state has a matrix over {len(own['inverse'])} parameters, this "
                f"{type(self).__name__} has {size}"
            )
        super().load_state_dict(rest)
        own = converted(copy.deepcopy(own), empty_flat(self.tensors()))
        self._inverse, self._known = own["inverse"], own["known"]


class BFGS(DenseQuasiNewton):
    """Broyden, Fletcher, Goldfarb and Shanno's: H ← (I − s yᵀ/sᵀy) H (I − y sᵀ/sᵀy) + s sᵀ/sᵀy.

    The usual choice for some hundreds of parameters and an objective without noise:

        optimizer = BFGS(model, iterations=20)
        def closure():
            return F.mse_loss(model(x), y)
        report = optimizer.step(closure)

    Args:
        model: Module to train, or its parameters: at most 20,000 numbers.
        **options: ``lr``, ``line_search``, ``powell_damping``, ``iterations``, ``deterministic``
            and ``parameters``, as for :class:`DenseQuasiNewton`.

    Reference:
        Nocedal and Wright, "Numerical Optimization", 2nd edition, 2006, section 6.1.
    """

    def update(self, s: Tensor, y: Tensor, product: Tensor) -> OuterProducts:
        """Two outer products, of which H stays positive definite."""
        return bfgs_inverse_products(s, y, product)


class DFP(DenseQuasiNewton):
    """Davidon, Fletcher and Powell's: H ← H + s sᵀ/sᵀy − Hy yᵀH/yᵀHy.

    The first of the family. It mends an H that is wrong more slowly than BFGS does, and so has a
    search of its own by default, c₂ = 0.1, which is nearly exact.

    Args:
        model: Module to train, or its parameters: at most 20,000 numbers.
        **options: As for :class:`BFGS`.

    Reference:
        Fletcher and Powell, "A rapidly convergent descent method for minimization", 1963.
    """

    strong_wolfe = StrongWolfe(curvature=0.1)

    def update(self, s: Tensor, y: Tensor, product: Tensor) -> OuterProducts:
        """Two outer products, of which H stays positive definite."""
        return dfp_inverse_products(s, y, product)


def check_powell_damping(share: float) -> None:
    """Refuses a μ that cannot work.

    Args:
        share: μ.

    Raises:
        ConfigurationError: If it is outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigurationError(
            f"powell_damping must be in [0, 1): 0.2 is usual, 0 off; got {share}"
        )


def has_curvature(s: Tensor, y: Tensor) -> bool:
    """Whether sᵀy > 0, by more than rounding.

    Args:
        s: Step [P].
        y: Change of the gradient [P].

    Returns:
        False for what is not finite, too.
    """
    norms = torch.linalg.vector_norm(s) * torch.linalg.vector_norm(y)
    return bool(s.dot(y) > torch.finfo(s.dtype).eps * norms)


def first_scale(s: Tensor, y: Tensor, gradient: Tensor) -> float:
    """The multiple of I to begin with: the inverse of the curvature along the gradient's change.

    Args:
        s: First step [P].
        y: Change of the gradient [P].
        gradient: Before it [P].

    Returns:
        sᵀy/yᵀy; where that is not positive, the length of the step in units of the gradient.
    """
    inner, square = float(s.dot(y)), float(y.dot(y))
    if inner > 0 and square > 0:  # small numbers have squares that are zero
        return inner / square
    return float(torch.linalg.vector_norm(s) / torch.linalg.vector_norm(gradient))


def converted(value: Any, like: Tensor) -> Any:  # noqa: ANN401
    """Gives the tensors of a state, in lists, tuples and dictionaries, a tensor's device and dtype.

    Args:
        value: State.
        like: Tensor.

    Returns:
        The same with other tensors where they differ.
    """
    if isinstance(value, Tensor):
        return value.to(like)
    if isinstance(value, dict):
        return {name: converted(item, like) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(converted(item, like) for item in value)
    return value
