import pytest
import torch

from npg.preconditioners.blocks import Partition, merged


@pytest.mark.parametrize(
    "shape", [(), (1,), (7,), (4, 6), (5, 3, 4), (2, 1, 3, 1, 2), (0,), (3, 0)]
)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("merge", [0, 6])
def test_joining_is_the_inverse_of_cutting(shape, size, merge):
    partition, tensor = Partition(shape, size, merge), torch.randn(shape)
    stacks = partition.cut(tensor)
    assert sum(stack.numel() for stack in stacks) == tensor.numel()
    assert all(max(stack.shape[1:]) <= size for stack in stacks)
    assert torch.equal(partition.join(stacks), tensor)


@pytest.mark.parametrize(
    ("shape", "limit", "wanted"),
    [
        ((2, 3, 4), 6, (6, 4)),
        ((2, 3, 4), 12, (6, 4)),
        ((2, 3, 4), 24, (24,)),
        ((10, 2, 1), 6, (10, 2)),
        ((1, 1), 6, (1,)),
        ((), 6, (1,)),
        ((16, 3, 3, 3), 27, (16, 27)),
    ],
)
def test_neighbours_are_merged_as_long_as_they_fit(shape, limit, wanted):
    assert merged(shape, limit) == wanted


def test_pieces_are_as_equal_as_they_can_be():
    assert Partition((784, 10), 256).shapes == [(196, 10)]
    assert Partition((7,), 3).shapes == [(2,), (3,)]


def test_equal_pieces_are_views():
    tensor = torch.randn(784, 10)
    (stack,) = Partition((784, 10), 256).cut(tensor)
    assert stack.data_ptr() == tensor.data_ptr()
    assert torch.equal(stack[1], tensor[196:392])
