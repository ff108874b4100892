"""Parameters that are spread over ranks (DTensors, as FSDP2 makes them), seen as plain tensors.

An elementwise optimizer works on this rank's entries alone, and its states are spread as the
parameters are. Any other sees whole parameters and gradients: they are gathered, every rank makes
the whole step, and keeps its entries of it. That spares a second message with the result, and no
rank waits for another's roots; what it costs is the others' arithmetic, and states that every rank
holds whole.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed
from torch import Tensor

from npg.errors import ConfigurationError
from npg.optim.finite import usable

# Importing it takes seconds; who has such a tensor has imported it.
MODULE = "torch.distributed.tensor"

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: object) -> "TypeGuard[DTensor]":
    """Whether a tensor is spread over ranks."""
    module = sys.modules.get(MODULE)
    return module is not None and isinstance(tensor, module.DTensor)


def refuse_shards(name: str, parameters: Iterable[object]) -> None:
    """Refuses parameters that are spread over ranks.

    Args:
        name: Of the optimizer, which needs them whole.
        parameters: Of it, or groups of them.

    Raises:
        ConfigurationError: If one is.
    """
    flat = [
        p for item in parameters for p in (item["params"] if isinstance(item, dict) else [item])
    ]
    if any(is_sharded(p) for p in flat):
        raise ConfigurationError(
            f"{name} takes no parameters that fully_shard has spread: use "
            "DistributedDataParallel, or an optimizer that needs gradients alone (adamw, adax, "
            "muon, shampoo, soap, ...)"
        )


@contextmanager
def plain_tensors(optimizer: torch.optim.Optimizer, *, elementwise: bool) -> Iterator[None]:
    """Lets an optimizer's groups and states hold plain tensors for a step.

    Args:
        optimizer: Whose step it is. Parameters and states are put back afterwards; if the step
            raised, as they were.
        elementwise: Whether each entry moves by itself, so that a rank's own are enough.
    """
    given = [group["params"] for group in optimizer.param_groups]
    if MODULE not in sys.modules or not any(is_sharded(p) for own in given for p in own):
        yield
        return
    before = optimizer.state
    stand_ins = {p: _opened(p, elementwise) for own in given for p in own}
    optimizer.state = defaultdict(dict)
    for p, stand_in in stand_ins.items():
        if p in before:
            optimizer.state[stand_in] = {
                name: _plain(value, elementwise) for name, value in before[p].items()
            }
    if elementwise:
        _agree(optimizer, stand_ins)
    try:
        for group, own in zip(optimizer.param_groups, given, strict=True):
            group["params"] = [stand_ins[p] for p in own]
        yield
        after = optimizer.state
        for p, stand_in in stand_ins.items():
            if stand_in in after:
                state = after[stand_in]
                if elementwise:
                    state = {name: _spread(value, p) for name, value in state.items()}
                before[p] = state
            if is_sharded(p) and not elementwise:
                p.to_local().copy_(_own_part(stand_in, p))
    finally:
        optimizer.state = before
        for group, own in zip(optimizer.param_groups, given, strict=True):
            group["params"] = own


def _opened(parameter: Tensor, elementwise: bool) -> Tensor:
    """A plain tensor with its gradient; of a whole one a copy."""
    if not is_sharded(parameter):
        return parameter
    stand_in: Tensor = _plain(parameter, elementwise).detach()
    if parameter.grad is not None:
        stand_in.grad = _plain(parameter.grad, elementwise)
    return stand_in.requires_grad_(parameter.requires_grad)


def _plain(value: Any, elementwise: bool) -> Any:  # noqa: ANN401
    if not is_sharded(value):
        return value
    return value.to_local() if elementwise else value.full_tensor()


def _spread(value: Any, parameter: Tensor) -> Any:  # noqa: ANN401
    """A state that has an entry per entry of the parameter, spread as this is."""
    if not (is_sharded(parameter) and isinstance(value, Tensor)):
        return value
    if value.shape != parameter.to_local().shape:
        return value
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        value,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _own_part(whole: Tensor, parameter: "DTensor") -> Tensor:
    """This rank's entries of what every rank has."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    part: Tensor = everywhere.redistribute(mesh, parameter.placements).to_local()
    return part


def _agree(optimizer: torch.optim.Optimizer, stand_ins: dict[Tensor, Tensor]) -> None:
    """Leaves out on all ranks what has a gradient that is not finite on one.

    As everywhere, this is found out where the numbers are in the host's memory.
    """
    spread = [
        (p, stand_in)
        for p, stand_in in stand_ins.items()
        if is_sharded(p) and stand_in.grad is not None and stand_in.is_cpu
    ]
    if not spread:
        return
    gradients = [stand_in.grad for _, stand_in in spread if stand_in.grad is not None]
    squares = getattr(optimizer, "squares", True)
    fine = torch.tensor(usable(gradients, [{} for _ in spread], squares=squares)).int()
    mesh = spread[0][0].device_mesh
    for dimension in range(mesh.ndim):
        torch.distributed.all_reduce(
            fine, torch.distributed.ReduceOp.MIN, group=mesh.get_group(dimension)
        )
    for (_, stand_in), good in zip(spread, fine.tolist(), strict=True):
        if not good:
            stand_in.grad = None
            state = optimizer.state[stand_in]
            state["skipped"] = state.get("skipped", 0) + 1
