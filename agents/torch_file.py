"""Reads what ``torch.save`` wrote of a state dictionary, without running or believing any of it.

``torch.load(weights_only=True)`` runs nothing either, but keys of dictionaries can keep it busy for
ever, and views of tensors may claim any size.
"""

import zipfile
from typing import Any

import torch

from agents import pickles
from agents.pickled_values import Values
from agents.pickles import Made, Named
from npg.checkpoints import members_of
from npg.errors import CheckpointError

# The names of the memory of tensors, which go back to the first torch.
_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}


def read(content: bytes, name: str, device: torch.device | str) -> Any:
    """Reads a state dictionary.

    Args:
        content: The file's.
        name: What errors call it.
        device: Where tensors go.

    Returns:
        What was saved.

    Raises:
        CheckpointError: If the file is damaged, not torch's, or holds something else.
    """
    try:
        return _read(members_of(content, "it", {zipfile.ZIP_STORED}, growth=1), device)
    except Exception as error:  # of a file that nobody saved
        raise CheckpointError(f"{name} is damaged, or no file of torch.save: {error}") from error


def _read(members: dict[str, bytes], device: torch.device | str) -> Any:
    roots = [member.removesuffix("data.pkl") for member in members if member.endswith("/data.pkl")]
    if len(roots) != 1 or members.get(f"{roots[0]}byteorder", b"little") != b"little":
        raise CheckpointError("it has no data, or those of another machine")
    tensors = _Tensors({m.removeprefix(f"{roots[0]}data/"): c for m, c in members.items()}, device)
    makers = {
        pickles.BESIDE: tensors.memory,
        "torch._utils._rebuild_tensor_v2": tensors.tensor,
        "torch._utils._rebuild_parameter": lambda values, made: values.of(made.arguments[0]),
    }
    return Values(makers).of(pickles.read(members[f"{roots[0]}data.pkl"]))


class _Tensors:
    def __init__(self, members: dict[str, bytes], device: torch.device | str) -> None:
        self.members = members
        self.device = device

    def memory(self, values: Values, made: Made) -> torch.Tensor:
        """All numbers that a tensor, or several, are made of; each has its own copy."""
        kind, named, member, _, number = made.arguments[0]
        if kind != "storage" or not isinstance(named, Named) or named.module != "torch":
            raise CheckpointError("a tensor without memory")
        dtype = _TYPES[named.name]
        content = bytearray(self.members[member])
        if len(content) != number * dtype.itemsize:
            raise CheckpointError(f"a tensor of {number} numbers in {len(content)} bytes")
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)

    def tensor(self, values: Values, made: Made) -> torch.Tensor:
        """Numbers of a memory, with the order of dimensions that they had."""
        memory, offset, size, stride, *_ = made.arguments
        memory = values.of(memory)
        if not isinstance(memory, torch.Tensor):
            raise CheckpointError("a tensor without memory")
        view = memory.as_strided(tuple(size), tuple(stride), offset)  # within its bounds
        if view.numel() > memory.numel():
            raise CheckpointError(f"a tensor of shape {tuple(size)} of {memory.numel()} numbers")
        return view.to(self.device, copy=True)
