"""Products with the Jacobian of a model's outputs, from the outputs' own autograd graph.

The general path differentiates twice on the real parameters: the VJP g(w) = Jᵀw is linear in w,
so the VJP of g is J. Unlike ``torch.func`` it works through any closure, LSTM, BatchNorm and tied
weights. Outputs whose graph is a chain of linear layers and activations take the hand-written
products of :mod:`npg.curvature.affine_chain` instead, which cost about half; a scale that all
samples share, those of :mod:`npg.curvature.log_scale`.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from npg.curvature.affine_chain import AffineChain
from npg.curvature.log_scale import LogScale
from npg.errors import ConfigurationError
from npg.linalg import Layout


class Block(Protocol):
    """Rows of a Jacobian: those of some of the outputs."""

    def jvp(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Returns J v, one tensor per output, from one tensor per parameter."""

    def add_vjp(self, cotangents: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Adds Jᵀu to one tensor per parameter."""


class GraphBlock:
    """Any differentiable outputs, by two passes over their graph.

    Args:
        outputs: Tensors with a graph, which is retained.
        parameters: What to differentiate with respect to; some may not be involved.
    """

    def __init__(self, outputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        self.outputs = list(outputs)
        probe = [torch.zeros_like(output, requires_grad=True) for output in self.outputs]
        with torch.enable_grad():
            gradients: Sequence[Tensor | None] = torch.autograd.grad(
                self.outputs, parameters, probe, create_graph=True, allow_unused=True
            )
        # A gradient without a graph is zero for every probe: torch.round's, for instance.
        used = [(i, g) for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        self.used = [i for i, _ in used]
        if len(self.used) < len(gradients) and reaches(self.outputs, "CheckpointFunctionBackward"):
            raise ConfigurationError(
                "reentrant checkpointing hides the parameters inside it: "
                "use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )
        self.involved = [parameters[i] for i in self.used]
        self.transpose = [gradient for _, gradient in used]
        self.probe = probe

    def jvp(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Returns J v, the VJP of the VJP."""
        products = torch.autograd.grad(
            self.transpose,
            self.probe,
            [pieces[i] for i in self.used],
            retain_graph=True,
            materialize_grads=True,
        )
        return list(products)

    def add_vjp(self, cotangents: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Adds Jᵀu."""
        products = torch.autograd.grad(
            self.outputs, self.involved, list(cotangents), retain_graph=True
        )
        for i, product in zip(self.used, products, strict=True):
            into[i].add_(product)


class FirstRows:
    """The first rows of a block's outputs, where the block cannot leave the others out.

    Args:
        block: Any block.
        outputs: Its outputs.
        rows: How many entries of their first dimension to keep.
    """

    def __init__(self, block: Block, outputs: Sequence[Tensor], rows: int) -> None:
        self.block = block
        self.outputs = [output.detach() for output in outputs]
        self.rows = rows

    def jvp(self, pieces: Sequence[Tensor]) -> list[Tensor]:
        """Returns the rows of J v."""
        return [tangent[: self.rows] for tangent in self.block.jvp(pieces)]

    def add_vjp(self, cotangents: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Adds Jᵀu, with u zero elsewhere."""
        padded = [torch.zeros_like(output) for output in self.outputs]
        for whole, cotangent in zip(padded, cotangents, strict=True):
            whole[: self.rows] = cotangent
        self.block.add_vjp(padded, into)


def reaches(outputs: Sequence[Tensor], name: str) -> bool:
    """Whether the outputs' graph has a node whose name begins so."""
    todo = [output.grad_fn for output in outputs]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node.name().startswith(name):
            return True
        seen.add(node)
        todo.extend(below for below, _ in node.next_functions)
    return False


class Jacobian:
    """J = ∂outputs/∂parameters at the point where the outputs were computed.

    Args:
        outputs: Tensors of any shapes; those without a graph have zero rows.
        parameters: What to differentiate with respect to, in the order of the flat vector.
        rows: Restricts it to the first so many entries of the outputs' first dimension, which
            chains then work on alone. Default: all.

    Raises:
        ConfigurationError: If no output depends on any of the parameters, the graph was freed, or
            reentrant checkpointing hides parameters.
    """

    def __init__(
        self, outputs: Sequence[Tensor], parameters: Sequence[Tensor], rows: int | None = None
    ) -> None:
        self.outputs = list(outputs)
        self.parameters = list(parameters)
        self.rows = rows
        self.layout = Layout(self.parameters)
        self.dtype = reduce(torch.promote_types, (p.dtype for p in self.parameters))
        self.blocks: list[tuple[Block, list[int]]] = []
        rest = []
        for i, output in enumerate(self.outputs):
            if not output.requires_grad:
                continue
            block: Block | None = AffineChain.recognise(output, self.parameters, rows)
            if block is None:
                block = LogScale.recognise(output, self.parameters)
                block = block and self._restricted(block, [output])
            if block is None:
                rest.append(i)
            else:
                self.blocks.append((block, [i]))
        if rest:
            graph = GraphBlock([self.outputs[i] for i in rest], self.parameters)
            if graph.used:
                self.blocks.append((self._restricted(graph, graph.outputs), rest))
        if not self.blocks:
            raise ConfigurationError(
                "the prediction depends on none of the parameters: compute it from the model "
                "with gradients enabled, and without detach()"
            )

    def _restricted(self, block: Block, outputs: Sequence[Tensor]) -> Block:
        return block if self.rows is None else FirstRows(block, outputs, self.rows)

    @property
    def recognised(self) -> bool:
        """Whether Jᵀ∇L is what autograd makes of the loss: no hook of a parameter may change it.

        Autograd functions whose backward pass is not differentiable are in no chain.
        """
        chains = all(not isinstance(block, (GraphBlock, FirstRows)) for block, _ in self.blocks)
        return chains and not any(parameter._backward_hooks for parameter in self.parameters)

    def jvp(self, vector: Tensor) -> list[Tensor]:
        """Multiplies by J.

        Args:
            vector: Flat tangent [P].

        Returns:
            One tangent per output, of its shape; zeros where nothing reaches it.
        """
        pieces = self.layout.split(vector)
        tangents: list[Tensor | None] = [None] * len(self.outputs)
        for block, indices in self.blocks:
            for i, tangent in zip(indices, block.jvp(pieces), strict=True):
                tangents[i] = tangent
        return [
            torch.zeros_like(output[: self.rows]) if tangent is None else tangent
            for output, tangent in zip(self.outputs, tangents, strict=True)
        ]

    def vjp(self, cotangents: Sequence[Tensor]) -> Tensor:
        """Multiplies by Jᵀ.

        Args:
            cotangents: One tensor per output, of its shape.

        Returns:
            Flat vector [P].
        """
        result = self.parameters[0].new_zeros(self.layout.size, dtype=self.dtype)
        into = self.layout.split(result)
        for block, indices in self.blocks:
            block.add_vjp([cotangents[i] for i in indices], into)
        return result
