import pytest
import torch

from npg.linalg.symmetric import pack, packed_shape, unpack


@pytest.mark.parametrize("shape", [(4, 4), (1, 1), (3, 5, 5), (7,), (2, 3), ()])
def test_half_of_it_is_all_of_it(shape):
    matrix = torch.randn(shape)
    if len(shape) > 1 and shape[-1] == shape[-2]:
        matrix = matrix + matrix.mT
    packed = pack(matrix)
    assert packed.shape == packed_shape(shape)
    assert torch.equal(unpack(packed, shape), matrix)


def test_sizes():
    assert packed_shape((785, 785)) == (308505,)
    assert packed_shape((2, 3, 3)) == (2, 6)
    assert packed_shape((2, 3)) == (2, 3)
