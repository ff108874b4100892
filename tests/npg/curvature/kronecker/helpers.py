"""Training steps by hand, and dense blocks to compare the factors with."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from npg.curvature.kronecker import Block, KroneckerFisher, MatrixBlock
from tests.npg.oracles import trained

EXACT = {"rtol": 1e-9, "atol": 1e-12}


def measured(
    model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor] = torch.sum, **options: object
) -> KroneckerFisher:
    """One forward and backward pass of a plain loop, and an update."""
    options.setdefault("kind", "exact")
    estimator = KroneckerFisher(model, **options)
    loss(model(x)).backward()
    finished(estimator)
    estimator.capture.active = False  # its passes would show in the hooks of others
    return estimator


def finished(estimator: KroneckerFisher) -> KroneckerFisher:
    estimator.finish()
    assert bool(estimator.finite())
    estimator.update(0.95)
    return estimator


def block_of(estimator: KroneckerFisher, parameter: Tensor) -> Block:
    (found,) = [b for b in estimator.blocks if any(p is parameter for p in b.parameters)]
    return found


def dense(block: Block) -> Tensor:
    """[P, P] over the block's flattened matrix, or its parameters one after the other."""
    if not isinstance(block, MatrixBlock):
        (moment,) = block.moments
        return moment if moment.ndim == 2 else moment.diag()
    inputs, signals = block.moments
    inputs = inputs.diag() if inputs.ndim == 1 else inputs
    if inputs.ndim == 2:
        return torch.kron(signals, inputs)
    return torch.block_diag(*(torch.kron(g, a) for g, a in zip(signals, inputs, strict=True)))


def in_matrix_order(block: Block, gradients: Sequence[Tensor]) -> Tensor:
    """Columns of a Jacobian in the block's parameters, [K, P], as the dense block counts them."""
    if not isinstance(block, MatrixBlock):
        return torch.cat([g.flatten(1) for g in gradients], 1)
    return torch.stack(
        [block.layer.matrix([g[i] for g in gradients]).flatten() for i in range(len(gradients[0]))]
    )


def jacobian_of(model: nn.Module, x: Tensor, block: Block) -> Tensor:
    """[outputs, P] by torch.func, in the order of the block's matrix."""
    names = {id(p): name for name, p in model.named_parameters()}
    wanted = {names[id(p)]: p.detach() for p in block.parameters}

    def output(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(model, parameters, (x,)).flatten()

    rows = jacrev(output)(wanted)
    return in_matrix_order(block, [rows[names[id(p)]] for p in block.parameters])


def squared_error_block(model: nn.Module, x: Tensor, block: Block) -> Tensor:
    """Gauss–Newton of the mean over samples of ½‖f − y‖², that of likelihood "normal"."""
    jacobian = jacobian_of(model, x, block)
    return jacobian.T @ jacobian / len(x)


def categorical_block(model: nn.Module, x: Tensor, block: Block) -> Tensor:
    """Mean of Jᵀ (diag(p) − p pᵀ) J."""
    logits = model(x).detach()
    p = logits.softmax(-1).reshape(-1, logits.shape[-1])
    inner = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    rows = jacobian_of(model, x, block).reshape(*p.shape, -1)
    return torch.einsum("nki,nkl,nlj->ij", rows, inner, rows) / len(p)


def moments(estimator: KroneckerFisher) -> list[Tensor]:
    return [moment for block in estimator.blocks for moment in block.moments]


def assert_same_moments(one: KroneckerFisher, other: KroneckerFisher, **tolerance: float) -> None:
    ours, theirs = moments(one), moments(other)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or EXACT))


def cleared(model: nn.Module) -> nn.Module:
    for p in trained(model):
        p.grad = None
    return model
