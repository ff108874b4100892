"""Tensors and arrays are read as they were written, in every bit."""

import numpy as np
import pytest
import torch

from tests.npg.checkpoints.helpers import again


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        *(torch.complex64, torch.complex128),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3, 5)])
def test_tensors(dtype, shape):
    value = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    found = again(value)
    assert found.dtype is dtype
    assert found.shape == value.shape
    assert torch.equal(found, value)


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "int64", "uint32", "uint8", "bool", ">f4", "float16"]
)
def test_arrays_and_numbers(dtype):
    value = np.arange(6).reshape(2, 3).astype(dtype)
    found = again({"array": value, "number": value[1, 2]})
    np.testing.assert_array_equal(found["array"], value)
    assert found["array"].dtype == value.dtype
    assert found["array"].dtype.str == value.dtype.str
    assert found["array"].flags.writeable
    assert found["number"] == value[1, 2]
    assert type(found["number"]) is type(value[1, 2])


def test_the_order_of_dimensions_in_memory_is_kept():
    """Products round by it: training would not go on bit for bit."""
    images = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    for value in (torch.arange(6.0).reshape(2, 3).T, images, torch.arange(24.0).view(2, 3, 4)):
        found = again(value)
        assert found.stride() == value.stride()
        assert torch.equal(found, value)


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(24.0).reshape(4, 6)[::2, 1::2].T,
        torch.arange(3.0).expand(2, 3),
        torch.tensor([1j, 2, 3]).expand(2, 3),
        torch.tensor([1j, 2, 3])[:, None].expand(3, 2),
        torch.tensor([[1j, 2, 3]] * 2).T,
        torch.tensor([1j, 2]).conj(),
        torch.tensor([1j, 2]).conj().imag,
        torch.zeros(0, 3).T,
        torch.ones(2, 3).T.to(torch.bfloat16),
        torch.tensor([[True, False]]).T,
    ],
    ids=range(10),
)
def test_tensors_that_are_views(value):
    found = again(value)
    assert found.dtype is value.dtype
    assert torch.equal(found, value)
    assert found.is_conj() is found.is_neg() is False


def test_parameters_are_parameters():
    found = again([torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), False)])
    assert [type(p) for p in found] == [torch.nn.Parameter] * 2
    assert [p.requires_grad for p in found] == [True, False]


@pytest.mark.parametrize(
    "value",
    [
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
        np.arange(6)[::-1],
        np.broadcast_to(np.arange(3), (2, 3)),
        np.zeros((0, 3)),
        np.array(2.5),
        np.array([1j, 2], np.complex64),
        np.arange(3, dtype=">c8"),
        np.array([True, False])[::-1],
    ],
    ids=range(9),
)
def test_arrays_of_every_order(value):
    found = again(value)
    np.testing.assert_array_equal(found, value)
    assert (found.dtype.str, found.shape) == (value.dtype.str, value.shape)
    assert np.argsort(found.strides).tolist() == np.argsort(np.copy(value, "K").strides).tolist()


def test_tensors_that_share_memory_are_copies():
    whole = torch.arange(6.0)
    found = again({"whole": whole, "part": whole[2:4], "twin": whole})
    found["whole"].zero_()
    assert found["part"].tolist() == [2, 3]
    assert found["twin"].tolist() == whole.tolist()
