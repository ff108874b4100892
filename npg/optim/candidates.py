"""Evaluating an objective at many places at once."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from npg.curvature import math_attention
from npg.linalg import Layout
from npg.optim.objective import Objective, agree
from npg.optim.population import Population
from npg.sampling import Displaced

# A place where a module keeps a parameter: the module, its name there, and which parameter.
Slot = tuple[nn.Module, str, int]


class NotBatchedError(Exception):
    """A closure cannot be evaluated at many places at once; the message says why."""


def slots_of(model: nn.Module, parameters: Sequence[Tensor]) -> list[Slot]:
    """Finds where a module and its submodules keep parameters.

    Args:
        model: The module.
        parameters: To be found.

    Returns:
        All places, several of a parameter that is shared, one of a module that is.

    Raises:
        NotBatchedError: If a parameter is nowhere.
    """
    index = {id(p): i for i, p in enumerate(parameters)}
    found = [
        (module, name, index[id(p)])
        for module in model.modules()
        for name, p in module._parameters.items()
        if id(p) in index
    ]
    if {i for _, _, i in found} != set(index.values()):
        raise NotBatchedError("not all parameters are the module's")
    return found


@contextmanager
def exchanged(slots: Sequence[Slot], values: Sequence[Tensor]) -> Iterator[None]:
    """Lets modules work with other tensors in the place of their parameters.

    Args:
        slots: Where the parameters are.
        values: One for each parameter.

    Yields:
        Nothing. Afterwards the modules have their parameters again.
    """
    kept = [module._parameters[name] for module, name, _ in slots]
    try:
        for module, name, i in slots:
            module._parameters[name] = values[i]  # type: ignore[assignment]
        yield
    finally:
        for (module, name, _), parameter in zip(slots, kept, strict=True):
            module._parameters[name] = parameter


def check_reads_slots(objective: Objective, displaced: Displaced, expected: float) -> None:
    """Makes sure that a closure reads parameters where they can be exchanged, and only there.

    It is evaluated with copies in their places while the parameters themselves are no numbers:
    what is captured elsewhere (a list for a penalty, a traced module, an LSTM's flat weights)
    shows, where vmap would take it for constant without a word.

    Args:
        objective: Of a module.
        displaced: Its parameters, where they are now.
        expected: The objective there.

    Raises:
        NotBatchedError: If the objective is another then, or cannot be computed.
    """
    model, closure = objective.optimizer.module, objective.closure
    assert model is not None
    assert closure is not None
    slots = slots_of(model, objective.parameters)
    copies = [p.detach().clone() for p in objective.parameters]
    displaced.assign(torch.full_like(t, math.nan) for t in displaced.tensors)
    try:
        with exchanged(slots, copies), torch.no_grad(), objective.conditions(), math_attention():
            value = float(closure())  # type: ignore[arg-type]
    except Exception as error:  # whatever the closure says of what is no number
        raise NotBatchedError("it reads parameters elsewhere than in the module") from error
    finally:
        displaced.restore()
    if not agree(value, expected, objective.parameters):
        raise NotBatchedError("it reads parameters elsewhere than in the module")


def batched(objective: Objective, rows: Tensor) -> Tensor:
    """Evaluates a closure at many places at once, by :func:`torch.func.vmap`.

    All places see the same random numbers; inside vmap some modules draw other ones than outside.

    Args:
        objective: Of a module, whose parameters the closure reads in the module.
        rows: Flat parameters [n, P].

    Returns:
        The objectives [n].

    Raises:
        NotBatchedError: If vmap cannot run the closure, or it returns no scalar tensor.
    """
    model, closure = objective.optimizer.module, objective.closure
    assert model is not None
    assert closure is not None
    slots = slots_of(model, objective.parameters)
    pieces = rows.split(Layout(objective.parameters).sizes, dim=1)
    stacked = [
        piece.reshape(len(rows), *p.shape).to(p.dtype)
        for p, piece in zip(objective.parameters, pieces, strict=True)
    ]

    def at(*values: Tensor) -> Tensor:
        with exchanged(slots, values):
            result = closure()
        if not (isinstance(result, Tensor) and result.ndim == 0):
            raise NotBatchedError("it returns no scalar tensor")
        return result

    try:
        with torch.no_grad(), objective.conditions(len(rows)), math_attention():
            values: Tensor = torch.func.vmap(at, randomness="same")(*stacked)
    except Exception as error:  # whatever vmap does not know; real faults show without it, too
        raise NotBatchedError(str(error).strip() or type(error).__name__) from error
    return values.double()


class Evaluator:
    """Evaluates candidates: in batches where vmap sees what a closure reads, else one by one.

    Attributes:
        batches: Whether in batches; None until a closure was looked at.
    """

    def __init__(self) -> None:
        self.batches: bool | None = None

    def look(
        self, objective: Objective, displaced: Displaced, expected: float, number: int
    ) -> None:
        """Finds out, with the first closure, whether vmap would see what it reads.

        Args:
            objective: The closure's.
            displaced: The parameters, where they are now.
            expected: The objective there; one that is not finite tells nothing.
            number: Of candidates at once.
        """
        known = self.batches is not None or objective.optimizer.module is None
        if known or number < 2 or not math.isfinite(expected):
            return
        try:
            check_reads_slots(objective, displaced, expected)
            self.batches = True
        except NotBatchedError as error:
            self._give_up(objective, error)

    def values(
        self,
        objective: Objective,
        population: Population,
        number: int,
        scalar: Callable[[object], float],
    ) -> list[float]:
        """Evaluates the next candidates.

        Args:
            objective: At them.
            population: Draws them.
            number: How many in a batch; one by one it is those of a row of noise.
            scalar: Reads what the closure returns.

        Returns:
            Their objectives.
        """
        if number > 1 and self.batches:
            rows = population.rows(number)
            try:
                return list(batched(objective, rows).tolist())
            except NotBatchedError as error:
                self._give_up(objective, error)
                population.forget()
        return [scalar(objective.again()) for _ in population.in_place()]

    def _give_up(self, objective: Objective, error: NotBatchedError) -> None:
        self.batches = False
        warnings.warn(
            f"{type(objective.optimizer).__name__}: candidates are evaluated one after another, "
            f"since vmap cannot run the closure ({str(error).splitlines()[0]}); chunk_size=1 says "
            "so from the beginning",
            stacklevel=5,
        )
