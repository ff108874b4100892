"""What the optimizers share that try candidates at random and go on from what became of them."""

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from npg import ranks
from npg.errors import ConfigurationError, NumericalError
from npg.linalg import split
from npg.optim.base import FunctionOptimizer, Prediction, StepReport
from npg.optim.finite import usable
from npg.optim.gradient import check_range
from npg.optim.hessian import HessianOptimizer
from npg.sampling import Displaced

BaseOptimizer = Callable[[Iterable[dict[str, Any]]], torch.optim.Optimizer]

# Steps in a row none of whose candidates had a finite objective, before an error says so.
PATIENCE = 3
NO_CANDIDATE = "no candidate's objective is finite"


@dataclass(frozen=True)
class SearchReport(StepReport):
    """What one step of a search did.

    Attributes:
        objective: Before the step, what is minimised.
        best: The least that a candidate had; nan if none had a finite one.
        candidates: That were evaluated.
        dropped: Of these, whose objective was not finite.
        effective_sample_size: How many candidates the direction rests on: 1 where one decides;
            nan where none does.
        sigma: Deviation of the noise; of several the root of their mean square.
    """

    objective: float = math.nan
    best: float = math.nan
    candidates: int = 0
    dropped: int = 0
    effective_sample_size: float = math.nan
    sigma: float = math.nan


class ParameterSearch(FunctionOptimizer):
    """Tries candidates around the parameters, and gives another optimizer a direction.

    The two share their groups and their state: a scheduler, ``state[p]`` and a checkpoint of this
    one have both.

    Args:
        model: Module to train, or its parameters.
        lr: Learning rate of ``base``. The groups may have different ones.
        candidates: Evaluated per step.
        sigma: Deviation of the noise, at first.
        base: Makes the optimizer that takes minus the direction for a gradient, of groups of
            parameters: a class, or ``functools.partial(torch.optim.Adam, betas=(0.5, 0.9))``.
        seed: Of the candidates.
        parameters: Restricts a module to a part of its parameters.

    Attributes:
        base: The optimizer that moves the parameters.
        generator: Draws the candidates.

    Raises:
        ConfigurationError: If a setting cannot work.
    """

    needs_prediction: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        candidates: int,
        sigma: float,
        base: BaseOptimizer,
        seed: int,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]] | None,
    ) -> None:
        super().__init__(model, {"lr": lr}, parameters)
        self.candidates = candidates
        self.sigma = sigma
        self.base = self._made(base)
        self.settings = tuple(self.base.defaults)
        self._share()
        device = self.param_groups[0]["params"][0].device
        self.generator = torch.Generator("cpu" if device.type == "meta" else device)
        self.generator.manual_seed(seed)
        if self.distributed:
            self._draw_alike()
        self.extra["failures_in_a_row"] = 0

    def _made(self, base: BaseOptimizer) -> torch.optim.Optimizer:
        made = base(self.param_groups) if callable(base) else None
        if not isinstance(made, torch.optim.Optimizer) or isinstance(
            made, FunctionOptimizer | HessianOptimizer | torch.optim.LBFGS
        ):
            raise ConfigurationError(
                "base must make an optimizer that needs gradients alone: torch.optim.SGD, "
                f"torch.optim.Adam, npg.optim.Shampoo …; got {base!r}"
            )
        return made

    def _share(self) -> None:
        """Looks at the groups and the state of the base optimizer as its own."""
        self.param_groups = self.base.param_groups
        self.state = self.base.state
        self.defaults = {**self.base.defaults, "lr": self.defaults["lr"]}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters.

        Args:
            param_group: ``params`` and what differs from the defaults.

        Raises:
            ConfigurationError: If a parameter is complex.
        """
        super().add_param_group(param_group)
        if hasattr(self, "base"):  # not while groups are made, of which it is made
            self.base.add_param_group(self.param_groups.pop())

    def check(self) -> None:
        """Refuses settings that cannot work, given at first or changed since."""
        if not (isinstance(self.candidates, Integral) and self.candidates >= 2):
            raise ConfigurationError(
                f"candidates must be a whole number of at least 2, got {self.candidates!r}: "
                "nothing can be said of one alone"
            )
        if not (isinstance(self.sigma, Real) and 0 < self.sigma < math.inf):
            raise ConfigurationError(
                f"sigma must be positive and finite, got {self.sigma!r}: without noise all "
                "candidates are the same"
            )
        for group in self.param_groups:
            check_range(group, "lr", 0, math.inf)

    @contextmanager
    def restoring(self, displaced: Displaced) -> Iterator[None]:
        """Puts the parameters back, whatever happens to their objective."""
        try:
            yield
        finally:
            displaced.restore()

    def _draw_alike(self) -> None:
        """Lets all ranks try the candidates of rank 0."""
        state = self.generator.get_state()
        ranks.share_([state])
        self.generator.set_state(state)

    def scalar(self, value: object) -> float:
        """Reads an objective; that of the whole batch, where ranks have parts of it.

        Args:
            value: What a closure returned for it.

        Returns:
            It.

        Raises:
            ConfigurationError: If it is no scalar, or has a graph.
        """
        plain = value
        if not isinstance(value, Tensor) or not value.requires_grad:
            if getattr(value, "shape", None) == ():  # a tensor's, or NumPy's
                plain = value.item()  # type: ignore[attr-defined]
            if isinstance(plain, Real):
                return ranks.average(float(plain)) if self.distributed else float(plain)
        kind = f"a {type(value).__name__}"
        if isinstance(value, Tensor):
            graph = " with a graph" if value.requires_grad else ""
            kind = f"a tensor of shape {tuple(value.shape)}{graph}"
        raise ConfigurationError(f"{type(self).__name__}: {self.advice}; got {kind}")

    @abstractmethod
    def closure_of(
        self,
        forward: Callable[[], tuple[Tensor, Prediction]],
        objective: Callable[[Any], Tensor | float] | None,
    ) -> Callable[[], Any]:
        """Makes a closure for :meth:`step` of what :func:`npg.optim.train_step` takes."""

    @abstractmethod
    def step(self, closure: Callable[[], Any] | None = None) -> SearchReport:  # type: ignore[override]
        """Takes one step."""

    def failed(self, report: SearchReport) -> SearchReport:
        """Counts a step none of whose candidates had a finite objective.

        Args:
            report: Of the step.

        Returns:
            The report.

        Raises:
            NumericalError: If it is the third in a row.
        """
        self.extra["skipped"] += 1
        self.extra["failures_in_a_row"] += 1
        if self.extra["failures_in_a_row"] >= PATIENCE:
            self.extra["failures_in_a_row"] = 0
            raise NumericalError(
                f"{type(self).__name__}: in {PATIENCE} steps in a row none of {report.candidates} "
                "candidates had a finite objective; the parameters are as before. Look at the "
                "objective, or give a smaller sigma"
            )
        return report

    @torch.no_grad()
    def descend(self, gradient: Tensor, displaced: Displaced) -> str:
        """Lets the base optimizer take a step.

        Args:
            gradient: Minus the direction, [P].
            displaced: The parameters, which are where they were.

        Returns:
            Why the parameters stayed there; empty if they moved.
        """
        # As the base optimizer sees them, in whose averages they and their squares would stay.
        pieces = [
            piece.to(parameter.dtype)
            for parameter, piece in zip(
                displaced.tensors, split(gradient, displaced.tensors), strict=True
            )
        ]
        if not all(usable(pieces, [{} for _ in pieces])):
            self.extra["rejected"] += 1
            return "the direction is not finite, or its square overflows"
        places = [p for group in self.param_groups for p in group["params"]]
        users = [p.grad for p in places]
        moved = False
        try:
            for parameter in places:  # one that is frozen, too, may have a gradient of the user's
                parameter.grad = None
            for parameter, piece in zip(displaced.tensors, pieces, strict=True):
                parameter.grad = piece
            displaced.moved = True
            self.base.step()
            moved = all(finite(p) for p in displaced.tensors)
        finally:
            for parameter, grad in zip(places, users, strict=True):
                parameter.grad = grad
            if not moved:
                self.extra["rejected"] += 1
                displaced.restore()
        if not moved:
            return "the step left the finite numbers"
        self.extra["failures_in_a_row"] = 0
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Both optimizers' state, counters under ``"npg"``, the generator's under ``"search"``."""
        rest = {
            key: value
            for key, value in self.base.state_dict().items()
            if key not in ("state", "param_groups")
        }
        search = {"kind": self._kind(), "generator": self.generator.get_state()}
        return {**super().state_dict(), "base": rest, "search": search}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave.

        Args:
            state_dict: Of this class, with the same base optimizer.

        Raises:
            ConfigurationError: If it is of another.
        """
        self.check_state(state_dict)
        own = copy.deepcopy(dict(state_dict))  # torch's optimizers keep the tensors they are given
        search, rest = own.pop("search"), own.pop("base")
        shared = {key: own[key] for key in ("state", "param_groups")}
        self.base.load_state_dict({**shared, **rest})
        super().load_state_dict(own)
        self.base.param_groups, self.base.state = self.param_groups, self.state
        self.generator.set_state(search["generator"].cpu())

    def check_state(self, state_dict: dict[str, Any]) -> None:
        """Refuses what :meth:`load_state_dict` cannot restore.

        Args:
            state_dict: To be loaded.

        Raises:
            ConfigurationError: If it is of another optimizer.
        """
        kind = state_dict.get("search", {}).get("kind")
        if kind != self._kind():
            raise ConfigurationError(
                f"the state is of another optimizer than {self._kind()}"
                + (f": {kind}" if kind else "")
            )

    def _kind(self) -> str:
        """The names of both optimizers."""
        return f"{type(self).__name__} over {type(self.base).__name__}"


def finite(tensor: Tensor) -> bool:
    """Whether all elements are: a sum that is not may have overflowed, and is looked into."""
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())
