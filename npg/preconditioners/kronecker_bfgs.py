"""K-BFGS: a gradient between the BFGS inverses of a layer's two Kronecker factors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from npg.curvature.kronecker import Block, MatrixBlock
from npg.curvature.kronecker.means import Evaluated
from npg.errors import ConfigurationError
from npg.linalg import split
from npg.preconditioners.base import Preconditioner
from npg.preconditioners.bfgs_factors import InputInverse, OutputInverse
from npg.preconditioners.kronecker_products import given_gradients
from npg.preconditioners.secants import DenseSecants, LimitedSecants

# Parameters that are no matrix have a matrix H up to so many entries, above it their last pairs.
DENSE_VECTOR = 256
VECTOR_MEMORY = 10


class KroneckerBFGS(Preconditioner[Evaluated, Mapping[Tensor, Tensor]]):
    """V ↦ H_G V H_A per layer; parameters that are no matrix have H_G alone.

    Args:
        blocks: Layers, and parameters outside of them.
        damping: λ; √λ is added to A, and is the least curvature that H_G believes.
        memory: Pairs to keep per factor instead of matrices; None keeps matrices.
        decay: Weight of the past in A, and in the means of the pairs.

    Reference:
        Goldfarb, Ren and Bahamou, "Practical quasi-Newton methods for training deep neural
        networks", 2020, sections 3 and 4.
    """

    def __init__(
        self, blocks: Sequence[Block], *, damping: float, memory: int | None, decay: float
    ) -> None:
        self.blocks = list(blocks)
        self.damping = damping
        self.memory = memory
        self.decay = decay
        self.inputs: list[InputInverse | None] = [None] * len(self.blocks)
        self.outputs: list[OutputInverse | None] = [None] * len(self.blocks)

    def update(self, statistics: Evaluated) -> None:
        """Lets A in, before a step is taken."""
        root = self.damping**0.5
        for i, means in enumerate(statistics.means):
            if means is None:
                continue
            if self.outputs[i] is None:
                self.outputs[i] = self._begun(i, means.outputs)
            known = self.inputs[i]
            if known is not None:
                known.update(means, root)
            elif means.inputs is not None:
                self.inputs[i] = InputInverse.begin(means, root, self.decay, self.memory)

    def follow(self, before: Evaluated, after: Evaluated) -> None:
        """Lets pairs into H_G, after a step was taken.

        Args:
            before: What :meth:`update` got.
            after: The same batch, evaluated where the step led.
        """
        for known, old, new in zip(self.outputs, before.means, after.means, strict=True):
            if known is not None and old is not None and new is not None:
                known.update(old, new, self.damping**0.5)

    def _begun(self, i: int, like: Tensor) -> OutputInverse:
        """H_G = I for vectors like this one."""
        ones, memory = torch.ones_like(like), self.memory
        if memory is None and not isinstance(self.blocks[i], MatrixBlock):
            memory = VECTOR_MEMORY if like.shape[-1] > DENSE_VECTOR else None
        secants = (
            DenseSecants(ones.diag_embed()) if memory is None else LimitedSecants(ones, memory)
        )
        return OutputInverse(secants, like, self.decay)

    def apply(self, gradients: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Multiplies by both inverses; what was never seen stays as it is.

        Args:
            gradients: By parameter.

        Returns:
            As many, at least in single precision.
        """
        result: dict[Tensor, Tensor] = {}
        for block, inputs, outputs in zip(self.blocks, self.inputs, self.outputs, strict=True):
            given = given_gradients(block, gradients)
            if not any(p in gradients for p in block.parameters):
                continue
            if outputs is not None:
                wide = [g.to(torch.promote_types(g.dtype, torch.float32)) for g in given]
                if isinstance(block, MatrixBlock) and inputs is not None:
                    solved = inputs.right(outputs.secants.times(block.layer.matrix(wide)))
                    given = block.layer.gradients(solved)
                else:
                    flat = torch.cat([g.flatten() for g in wide])
                    given = split(outputs.secants.product(flat), block.parameters)
            pairs = zip(block.parameters, given, strict=True)
            result |= {p: direction for p, direction in pairs if p in gradients}
        return result

    def state_dict(self) -> list[dict[str, Any]]:
        """What is known of every block, in order."""
        return [
            {
                "inputs": None if inputs is None else inputs.state(),
                "outputs": None if outputs is None else outputs.state(),
            }
            for inputs, outputs in zip(self.inputs, self.outputs, strict=True)
        ]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Restores what :meth:`state_dict` gave.

        Args:
            state: Of the same layers, in the same form.

        Raises:
            ConfigurationError: If it does not fit; then nothing of it was loaded.
        """
        if len(state) != len(self.blocks):
            raise ConfigurationError(
                f"the state is of {len(state)} blocks, this model has {len(self.blocks)}"
            )
        loaded: list[tuple[InputInverse | None, OutputInverse | None]] = []
        for i, entry in enumerate(state):
            inputs, outputs = self._empty(i)
            pair = (
                None if entry["inputs"] is None else inputs,
                None if entry["outputs"] is None else outputs,
            )
            for known, name in zip(pair, ("inputs", "outputs"), strict=True):
                if known is not None and not known.fits(entry[name]):
                    raise ConfigurationError(
                        f"the state is of another model or another memory=: the inverse for the "
                        f"{name} of block {i} has another shape or form"
                    )
            loaded.append(pair)
        for pair, entry in zip(loaded, state, strict=True):
            for known, name in zip(pair, ("inputs", "outputs"), strict=True):
                if known is not None:
                    known.load(entry[name])
        self.inputs = [inputs for inputs, _ in loaded]
        self.outputs = [outputs for _, outputs in loaded]

    def _empty(self, i: int) -> tuple[InputInverse | None, OutputInverse]:
        """Inverses of a block's shapes, to be loaded."""
        block = self.blocks[i]
        kind = block.parameters[0]
        if not isinstance(block, MatrixBlock):
            return None, self._begun(i, kind.new_empty(sum(p.numel() for p in block.parameters)))
        inputs, outputs = block.shapes()
        begun = self._begun(i, kind.new_empty(outputs[:-1]))
        if len(inputs) == 1:  # one-hot rows
            return InputInverse(kind.new_empty(inputs), None, self.decay), begun
        if self.memory is not None:
            pairs = LimitedSecants(kind.new_empty(inputs[:-1]), self.memory)
            return InputInverse(None, pairs, self.decay), begun
        dense = DenseSecants(kind.new_empty(inputs))
        return InputInverse(kind.new_empty(inputs), dense, self.decay), begun
