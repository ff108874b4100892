"""nn.MultiheadAttention, whose projections are no calls of modules that a hook could hear.

While somebody listens, an equal forward pass takes the place of the layer's own, with its
projections set out: query, key and value as one linear layer in three groups, and the output by a
call of ``out_proj``.
"""

import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npg.curvature.kronecker.layers import MatrixLayer

PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
PACKED = "in_proj_weight"

Note = Callable[[nn.Module, Tensor, Tensor, str], None]


class Listener(Protocol):
    """Somebody who wants to know about projections."""

    @property
    def explicit(self) -> bool:
        """Whether forward passes are to be set out now."""

    def note(self, module: nn.Module, inputs: Tensor, output: Tensor, part: str) -> None:
        """Hears of one projection."""


def is_attention(module: nn.Module) -> TypeGuard[nn.MultiheadAttention]:
    """Whether a module's forward pass can be set out; one with further keys cannot."""
    return (
        isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
        and isinstance(module.__dict__.get("forward"), AttentionForward | None)
        and module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
    )


def projections(module: nn.MultiheadAttention) -> dict[str, tuple[str | None, str | None]]:
    """Names of the weights and biases of its input projections.

    Args:
        module: An attention layer.

    Returns:
        Weight and bias by part. Where query, key and value differ in size, each has a matrix of
        its own, and the bias that they share belongs to none.
    """
    if module._qkv_same_embed_dim:
        return {PACKED: (PACKED, "in_proj_bias")}
    return {name: (name, None) for name in PROJECTIONS}


class InProjectionLayer(MatrixLayer):
    """in_proj_weight [3E, E] as three groups [3, E, E], for queries, keys and values.

    Inputs are [N, R, 3, E + 1], with a last coordinate of 1, or 0 where there are fewer queries
    than keys or the reverse.
    """

    def rows(self, module: nn.Module, inputs: Tensor, output: torch.Size) -> Tensor:
        """[N, R, 3, d]."""
        if self.weight is None:
            return inputs[..., -1:]
        return inputs[..., :-1] if self.bias is None else inputs

    def present(self, inputs: Tensor) -> Tensor:
        """[N, R, 3]."""
        return inputs[..., -1]

    def signals(self, module: nn.Module, gradients: Tensor, inputs: Tensor) -> Tensor:
        """[N, R, 3E] to [N, R, 3, E]."""
        return gradients.reshape(*gradients.shape[:-1], 3, -1)

    def weight_matrix(self, weight: Tensor) -> Tensor:
        """[3E, E] to [3, E, E]."""
        return weight.reshape(3, -1, weight.shape[-1])

    def weight_from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`weight_matrix`."""
        return matrix.flatten(0, 1)

    def bias_column(self, bias: Tensor) -> Tensor:
        """[3E] to [3, E, 1]."""
        return bias.reshape(3, -1, 1)


class AttentionForward:
    """Stands in for the forward method of one attention layer, and does the same.

    Copies and pickles of it belong to the copied layer, have no listeners, and remove themselves
    when they are called.

    Args:
        module: The layer.
    """

    def __init__(self, module: nn.MultiheadAttention) -> None:
        self.module = module
        self.listeners: list[weakref.ref[Listener]] = []

    def __reduce__(self) -> tuple[type["AttentionForward"], tuple[nn.MultiheadAttention]]:
        """Copies are inert."""
        return (AttentionForward, (self.module,))

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention.forward."""
        heard = [listener for ref in self.listeners if (listener := ref()) is not None]
        if not heard and self.module.__dict__.get("forward") is self:  # a copy
            del self.module.__dict__["forward"]
        if not any(listener.explicit for listener in heard):
            return nn.MultiheadAttention.forward(self.module, *args, **kwargs)

        def note(module: nn.Module, inputs: Tensor, output: Tensor, part: str) -> None:
            for listener in heard:
                listener.note(module, inputs, output, part)

        return explicit_attention(self.module, note, *args, **kwargs)


class Listening:
    """A listener's place at one layer; both are held weakly.

    Args:
        module: The layer.
        listener: Who is to hear of its projections.
    """

    def __init__(self, module: nn.MultiheadAttention, listener: Listener) -> None:
        forward = module.__dict__.get("forward")
        if not isinstance(forward, AttentionForward):
            forward = AttentionForward(module)
            module.__dict__["forward"] = forward
        self.module = weakref.ref(module)
        self.listener = weakref.ref(listener)
        forward.listeners.append(self.listener)

    def remove(self) -> None:
        """Ends it; a layer that nobody listens to gets its own forward method back."""
        module = self.module()
        forward = None if module is None else module.__dict__.get("forward")
        if module is None or not isinstance(forward, AttentionForward):
            return
        forward.listeners = [ref for ref in forward.listeners if ref is not self.listener]
        if not forward.listeners:
            del module.__dict__["forward"]


def explicit_attention(
    module: nn.MultiheadAttention,
    note: Note,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What nn.MultiheadAttention computes in training, with its projections noted.

    Args:
        module: The layer.
        note: Is told (module, inputs, output, part) of every projection that no hook would hear.
        query: As those of nn.MultiheadAttention.forward, here and below.
        key: [N, S, E] or [S, N, E] or [S, E].
        value: The same.
        key_padding_mask: [N, S] or [S].
        need_weights: Whether to return the attention weights.
        attn_mask: [L, S] or [N heads, L, S].
        average_attn_weights: Whether to average these over heads.
        is_causal: Says of the mask that it is causal.

    Returns:
        Output and attention weights, or None.
    """
    if is_causal and attn_mask is None:  # which it refuses
        return nn.MultiheadAttention.forward(module, query, key, value, is_causal=True)
    batched = query.ndim == 3
    transposed = batched and not module.batch_first
    same = query is key and key is value

    def batch_first(x: Tensor) -> Tensor:
        return x.transpose(0, 1) if transposed else x if batched else x.unsqueeze(0)

    q, k, v = _projected(
        module, note, batch_first(query), batch_first(key), batch_first(value), same
    )
    n, targets, _ = q.shape
    sources = k.shape[1]
    mask = _merged(attn_mask, key_padding_mask, n, module.num_heads, targets, sources, q.dtype)
    if is_causal and key_padding_mask is None and not need_weights:
        mask = None  # attention applies a causal mask of its own
    else:
        is_causal = False
    q, k, v = (x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    dropout = module.dropout if module.training else 0.0
    weights: Tensor | None = None
    if need_weights:
        scores = q @ k.mT * (1 / q.shape[-1]) ** 0.5
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        mixed = weights @ v
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights if batched else weights.squeeze(0)
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
    output = module.out_proj(mixed.transpose(1, 2).flatten(2))
    output = output.transpose(0, 1) if transposed else output if batched else output.squeeze(0)
    return output, weights


def _projected(
    module: nn.MultiheadAttention, note: Note, query: Tensor, key: Tensor, value: Tensor, same: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [N, R, E]."""
    bias = module.in_proj_bias
    inputs = (query, key, value)
    if not module._qkv_same_embed_dim:
        biases = (None, None, None) if bias is None else bias.chunk(3)
        outputs = []
        for name, x, b in zip(PROJECTIONS, inputs, biases, strict=True):
            outputs.append(F.linear(x, getattr(module, name), b))
            note(module, x, outputs[-1], name)
        return outputs[0], outputs[1], outputs[2]
    weight = module.in_proj_weight
    assert weight is not None
    if same:
        packed = F.linear(query, weight, bias)
        seen = F.pad(query.detach(), (0, 1), value=1.0).unsqueeze(2).expand(-1, -1, 3, -1)
        note(module, seen, packed, PACKED)
        q, k, v = packed.chunk(3, -1)
        return q, k, v
    biases = (None, None, None) if bias is None else bias.chunk(3)
    longest = max(x.shape[1] for x in inputs)

    def filled(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, longest - x.shape[1]))

    # One tensor for the three, so that its gradient is that of all of them.
    packed = torch.cat(
        [
            filled(F.linear(x, w, b))
            for x, w, b in zip(inputs, weight.chunk(3), biases, strict=True)
        ],
        -1,
    )
    seen = torch.stack([filled(F.pad(x.detach(), (0, 1), value=1.0)) for x in inputs], 2)
    note(module, seen, packed, PACKED)
    q, k, v = (part[:, : x.shape[1]] for part, x in zip(packed.chunk(3, -1), inputs, strict=True))
    return q, k, v


def _merged(
    mask: Tensor | None,
    padding: Tensor | None,
    n: int,
    heads: int,
    targets: int,
    sources: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """Both masks as one to add, broadcastable to [N, heads, L, S]."""
    if mask is not None:
        mask = _additive(mask, dtype)
        if mask.ndim == 3:
            mask = mask.view(n, heads, targets, sources)
    if padding is None:
        return mask
    padding = _additive(padding, dtype).view(n, 1, 1, sources)
    return padding if mask is None else mask + padding


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
