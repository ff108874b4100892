import pytest
import torch
from torch import nn

from npg.linalg import add_, assign_, flatten, split


def tensors():
    return [torch.randn(2, 3), torch.randn(()), torch.randn(4, 1).T, torch.randn(0, 2)]


def test_flatten_is_row_major_and_split_inverts_it():
    one = tensors()
    vector = flatten(one)
    assert vector.shape == (11,)
    assert torch.equal(vector[:6], one[0].reshape(6))
    assert torch.equal(vector[3], one[0][1, 0])
    pieces = split(vector, one)
    for piece, tensor in zip(pieces, one, strict=True):
        assert torch.equal(piece, tensor)


def test_flatten_copies_and_split_does_not():
    one = [torch.zeros(3)]
    vector = flatten(one)
    vector += 1
    assert not one[0].any()
    (piece,) = split(vector, one)
    piece += 1
    assert torch.equal(vector, torch.full((3,), 2.0))


@pytest.mark.parametrize("size", [10, 12])
def test_split_wants_every_element(size):
    with pytest.raises(RuntimeError):
        split(torch.zeros(size), tensors())


def test_assign_is_bit_for_bit():
    values = [torch.tensor([0.1, -0.0, float("inf")]), torch.tensor([[1e-310]])]
    into = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1, 1))]
    assign_(into, values)
    for tensor, value in zip(into, values, strict=True):
        assert torch.equal(tensor, value)
        assert torch.equal(tensor.signbit(), value.signbit())
    with pytest.raises(ValueError, match="zip"):
        assign_(into, values[:1])


def test_add_moves_from_the_start():
    start = [torch.randn(2, 3), torch.randn(4)]
    parameters = [nn.Parameter(torch.full_like(t, 7.0)) for t in start]
    kept = [t.clone() for t in start]
    direction = torch.arange(10.0)
    add_(parameters, start, direction, -0.5)
    assert torch.equal(parameters[0], start[0] - 0.5 * direction[:6].view(2, 3))
    assert torch.equal(parameters[1], start[1] - 0.5 * direction[6:])
    assert all(torch.equal(a, b) for a, b in zip(start, kept, strict=True))
    assert all(p.requires_grad and p.is_leaf and p.grad is None for p in parameters)
    with pytest.raises(ValueError, match="zip"):
        add_(parameters, start[:1], direction[:6], 1.0)


def test_moves_are_seen_by_version_counters():
    """Copies of a policy are rebuilt when they change; autograd refuses stale graphs by them."""
    parameter = nn.Parameter(torch.zeros(3))
    version = parameter._version
    add_([parameter], [torch.zeros(3)], torch.ones(3), 1.0)
    assert parameter._version > version
    version = parameter._version
    assign_([parameter], [torch.zeros(3)])
    assert parameter._version > version


def test_a_perturbation_is_undone_by_a_copy():
    """Adding and subtracting changes float32 entries; the kept start does not."""
    start = torch.randn(10_000, dtype=torch.float32)
    direction = torch.randn(10_000, dtype=torch.float32)
    assert not torch.equal(start + direction - direction, start)
    parameter = nn.Parameter(start.clone())
    add_([parameter], [start], direction, 1.0)
    add_([parameter], [start], direction, 0.0)
    assert torch.equal(parameter, start)
