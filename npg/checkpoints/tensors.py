"""Tensors and arrays of values, as safetensors can keep them, and made again in every bit.

What it keeps is contiguous, real, in this machine's byte order, and named; what a value has beyond
that stands beside the name: {"$tensor": "policy.weight", "order": [1, 0], "complex": true}.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from npg.errors import CheckpointError

Json = Any
Array = np.ndarray[Any, Any]

_KEPT = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.complex32, torch.complex64, torch.complex128),
}
_KEPT_KINDS = "biufc"  # of numpy's


def is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether numpy's type is a number of a precision that torch knows."""
    return dtype.kind in _KEPT_KINDS and dtype.itemsize <= (16 if dtype.kind == "c" else 8)


def is_kept(value: object) -> bool:
    """Whether a value is a tensor or array that can be kept as it is."""
    if isinstance(value, Tensor):
        plain = type(value) in (Tensor, torch.nn.Parameter)
        here = value.device.type != "meta"  # where there are no numbers
        return plain and here and value.layout is torch.strided and value.dtype in _KEPT
    return type(value) is np.ndarray and is_plain(value.dtype)


def describe_tensor(value: Tensor, tensors: dict[str, Tensor], place: str) -> dict[str, Json]:
    """Keeps a tensor.

    Args:
        value: One of which :func:`is_kept` is true.
        tensors: Gets a copy of it.
        place: What to name it by.

    Returns:
        The description.
    """
    described: dict[str, Json] = {}
    if isinstance(value, torch.nn.Parameter):
        described["parameter"] = value.requires_grad
    value = value.detach().resolve_conj().resolve_neg()
    # Products of matrices round by the order of dimensions in memory. One that is expanded has
    # several elements in one place, and gets the usual order.
    strides = value.stride()
    order = sorted(range(value.ndim), key=lambda d: (-strides[d], d))
    if 0 not in strides and order != list(range(value.ndim)):
        value = value.permute(order)
        described["order"] = order
    value = value.contiguous()
    if value.is_complex():  # of which safetensors has not every precision
        value = torch.view_as_real(value)
        described["complex"] = True
    return {"$tensor": _keep(value, tensors, place), **described}


def describe_array(value: Array, tensors: dict[str, Tensor], place: str) -> dict[str, Json]:
    """Keeps an array; see :func:`describe_tensor`."""
    native = np.array(value, dtype=value.dtype.newbyteorder("="), order="K")
    described = describe_tensor(torch.from_numpy(native), tensors, place)
    described = {"$array": described.pop("$tensor"), **described}
    return described if value.dtype.isnative else {**described, "dtype": value.dtype.str}


def made(
    described: Mapping[str, Json], tensors: Mapping[str, Tensor], device: torch.device | str
) -> Tensor | Array:
    """Makes the tensor or array that was described, in memory of its own.

    Args:
        described: What :func:`describe_tensor` or :func:`describe_array` returned.
        tensors: What they kept.
        device: Where tensors go.

    Returns:
        A tensor for "$tensor", an array for "$array".

    Raises:
        CheckpointError: If nobody described anything so.
    """
    is_array = "$array" in described
    kept = tensors[described["$array" if is_array else "$tensor"]]
    # A copy: what lies in a file's bytes need not begin where vectors are loaded fast, nor need its
    # truth values be 0 or 1.
    value = kept.to("cpu" if is_array else device, copy=True)
    if described.get("complex"):
        value = torch.view_as_complex(value)
    order = described.get("order")
    if order is not None:
        if sorted(order) != list(range(value.ndim)):
            raise CheckpointError(f"{order} is no order of {value.ndim} dimensions")
        value = value.permute([order.index(d) for d in range(len(order))])
    if not is_array:
        trained = described.get("parameter")
        return value if trained is None else torch.nn.Parameter(value, bool(trained))
    array: Array = value.numpy()
    if "dtype" in described:
        dtype = np.dtype(described["dtype"])
        if dtype.newbyteorder("=") != array.dtype:
            raise CheckpointError(f"an array of {array.dtype} is said to be of {dtype}")
        array = array.astype(dtype)
    return array


def _keep(value: Tensor, tensors: dict[str, Tensor], place: str) -> str:
    """Copies a tensor to where nothing changes it, and returns its name."""
    name = place.encode(errors="backslashreplace").decode()
    while name in tensors or name == "__metadata__":  # which safetensors has for itself
        name += "'"
    tensors[name] = value.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return name
