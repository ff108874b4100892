"""The block-tridiagonal inverse against dense matrices of explicit Kronecker products."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from tests.npg.preconditioners.chain_statistics import (
    Statistics,
    applied,
    assemble,
    block_diagonal,
    moments,
    statistics,
    transitions,
)


@pytest.mark.parametrize("damping", [0.0, 1e-3, 1.0])
def test_is_the_product_of_the_definition(damping: float) -> None:
    """Ξᵀ Λ Ξ of dense blocks."""
    given = statistics()
    damped = given.damped(damping)
    dense, predict = damped.dense(), transitions(damped)
    offsets = torch.tensor([0, *(len(dense[i][i]) for i in range(4))]).cumsum(0)
    xi = torch.eye(int(offsets[-1]))
    covariances = [dense[3][3]]
    for i in (2, 1, 0):
        xi[offsets[i] : offsets[i + 1], offsets[i + 1] : offsets[i + 2]] = -predict[i]
        covariances.insert(0, dense[i][i] - predict[i] @ dense[i + 1][i + 1] @ predict[i].T)
    lambda_ = torch.block_diag(*(torch.linalg.inv(covariance) for covariance in covariances))
    expected = xi.T @ lambda_ @ xi
    found = applied(given.inverse(damping), given)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    torch.testing.assert_close(found, found.T, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    assert torch.linalg.eigvalsh(found).min() > 0


@pytest.mark.parametrize("damping", [0.0, 0.05])
def test_inverts_the_chain_that_shares_its_neighbours_covariances(damping: float) -> None:
    """F̂ of a Markov chain: what is further apart is correlated by way of what is between."""
    given = statistics()
    damped = given.damped(damping)
    dense, predict = damped.dense(), transitions(damped)
    chain = [list(row) for row in dense]
    for distance in (2, 3):
        for i in range(4 - distance):
            chain[i][i + distance] = predict[i] @ chain[i + 1][i + distance]
            chain[i + distance][i] = chain[i][i + distance].T
    expected = torch.linalg.inv(assemble(chain))
    first, last = len(dense[0][0]), len(dense[3][3])
    assert expected[:first, -last:].abs().max() < 1e-8 * expected.abs().max()  # tridiagonal
    found = applied(given.inverse(damping), given)
    assert torch.linalg.norm(found - expected) < 1e-8 * torch.linalg.norm(expected)


def test_is_exact_where_inputs_and_signals_are_chains_themselves() -> None:
    """Then F̃, all of its blocks G_lm ⊗ A_lm, has the block-tridiagonal inverse."""
    given = statistics()
    for joint in (given.inputs, given.signals):
        for distance in (2, 3):
            for i in range(4 - distance):
                j = i + distance
                gain = joint[i][i + 1] @ torch.linalg.inv(joint[i + 1][i + 1])
                joint[i][j] = gain @ joint[i + 1][j]
                joint[j][i] = joint[i][j].T
    expected = torch.linalg.inv(assemble(given.dense()))
    found = applied(given.inverse(0.0), given)
    assert torch.linalg.norm(found - expected) < 1e-8 * torch.linalg.norm(expected)
    assert torch.linalg.norm(block_diagonal(given) - expected) > 0.1 * torch.linalg.norm(expected)


def network_statistics(sizes: Sequence[int], samples: int) -> Statistics:
    """Factors of the exact Fisher of a tanh network with a softmax, label by label."""
    weights = [
        torch.cat([torch.randn(m, n) / math.sqrt(n), 0.1 * torch.randn(m, 1)], 1)
        for n, m in pairwise(sizes)
    ]

    def forward(x: Tensor, shifts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        seen = []
        for weight, shift in zip(weights, shifts, strict=True):
            seen.append(torch.cat([x, torch.ones(1)]))
            output = weight @ seen[-1] + shift
            x = torch.tanh(output)
        return output.log_softmax(0), seen

    zeros = [torch.zeros(len(weight)) for weight in weights]
    x = torch.randn(samples, sizes[0])
    log_probabilities, inputs = vmap(lambda x: forward(x, zeros))(x)
    signals = vmap(lambda x: jacrev(lambda shifts: forward(x, shifts)[0])(zeros))(x)
    weight = log_probabilities.exp().flatten() / samples
    return Statistics(moments(inputs), moments([s.flatten(0, 1) for s in signals], weight))


@pytest.mark.parametrize("damping", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("sizes", [(6, 8, 6, 4), (5, 8, 7, 6, 3)])
def test_is_nearer_to_the_full_inverse_than_the_block_diagonal(
    sizes: Sequence[int], damping: float
) -> None:
    """Martens and Grosse's section 4: the inverse of F̃ itself, with the same damping."""
    given = network_statistics(sizes, 60)
    damped = given.damped(damping)
    full = torch.linalg.inv(assemble(damped.dense()))
    tridiagonal = torch.linalg.norm(applied(given.inverse(damping), given) - full)
    diagonal = torch.linalg.norm(block_diagonal(damped) - full)
    assert tridiagonal < 0.75 * diagonal


def test_one_layer_is_its_block() -> None:
    given = statistics((4,), (3,))
    found = applied(given.inverse(0.1), given)
    torch.testing.assert_close(found, block_diagonal(given.damped(0.1)))


def test_layers_without_anything_in_common_are_their_blocks() -> None:
    """It is enough that either the inputs or the signals are uncorrelated."""
    given = statistics()
    for name in ("inputs", "signals"):
        joint = getattr(given, name)
        zeroed = [[m * (i == j) for j, m in enumerate(row)] for i, row in enumerate(joint)]
        alone = replace(given, **{name: zeroed})
        found = applied(alone.inverse(0.1), alone)
        expected = block_diagonal(alone.damped(0.1))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
