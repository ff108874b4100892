"""What quasi-Newton pairs are made of: means over a batch of what layers get, give and are told.

For a layer with output h = W [a, 1]ᵀ at every entry and position of the batch:

    ā = mean of [a, 1],   A = mean of [a, 1] [a, 1]ᵀ,   h̄ = mean of h,   δ̄ = Σ ∂loss/∂h

δ̄ is the gradient along a shift that all h have in common, in the loss's own units: of a mean over
samples it is the mean of their gradients, each summed over positions. Parameters of other kinds
are the output of a layer whose only input is 1: h̄ is the parameter, δ̄ its gradient.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from npg import ranks
from npg.curvature.kronecker.assignment import assign
from npg.curvature.kronecker.blocks import Block, Call, MatrixBlock
from npg.curvature.kronecker.capture import Capture, back_propagate, refuse_reentrant_checkpoint
from npg.curvature.kronecker.positions import at_least_single, second_moment

# What to keep of the inputs: A, the rows that it is the mean of, or nothing.
Inputs = Literal["moment", "rows", "none"]


@dataclass
class Means:
    """One block's, of one evaluation; g counts the groups of a grouped layer.

    Attributes:
        outputs: h̄ [(g,) o].
        signals: δ̄ [(g,) o].
        inputs: ā [(g,) d]; None where the only input is 1, or nobody asked.
        moment: A [(g,) d, d], [d] where rows are one-hot; or None.
        rows: The rows of A [(g,) rows, d], over the root of their number; or None.
    """

    outputs: Tensor
    signals: Tensor
    inputs: Tensor | None = None
    moment: Tensor | None = None
    rows: Tensor | None = None

    def total(self) -> Tensor:
        """A number that is finite if all entries are."""
        parts = (self.outputs, self.signals, self.inputs, self.moment)
        return torch.stack([part.sum() for part in parts if part is not None]).sum()


@dataclass
class Evaluated:
    """Of one evaluation of a loss.

    Attributes:
        gradients: By parameter, where there are any.
        means: Per block; None where its layers took no part.
    """

    gradients: dict[Tensor, Tensor]
    means: list[Means | None]

    def average(self) -> None:
        """Makes them those of the batches of all ranks of ``torch.distributed``, in place."""
        means = [m for m in self.means if m is not None]
        parts = [t for m in means for t in (m.outputs, m.signals, m.inputs, m.moment)]
        ranks.average_([*self.gradients.values(), *(t for t in parts if t is not None)])

    def finite(self) -> bool:
        """Whether the means are; reads one number."""
        totals = [means.total().float() for means in self.means if means is not None]
        return not totals or bool(torch.isfinite(torch.stack(totals)).all())


class LayerMeans:
    """Listens to a model's layers while asked to, in training and in evaluation mode.

    Args:
        model: Module to listen to.
        parameters: Restricts it to a part of the model's parameters.

    Attributes:
        blocks: One per layer, in the order of the model's modules, then free parameters.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[Tensor]) -> None:
        self.model = model
        self.blocks, self._owner = assign(model, parameters, "expand", False)
        self._listen()

    def _listen(self) -> None:
        layers = {module for module, _ in self._owner}
        heard = [m for m in self.model.modules() if m in layers or _heard_through(m, layers)]
        self.capture = Capture(self.model, heard, on_call=self._at_call, in_evaluation=True)
        self.capture.active = False

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the hooks."""
        return {**self.__dict__, "capture": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores, and listens."""
        self.__dict__.update(state)
        self._listen()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Notes what the layers do inside the block."""
        self.capture.active = True
        try:
            yield
        finally:
            self.capture.active = False
            self.capture.take()

    def _at_call(self, call: Call, output: Tensor) -> None:
        """Sums an output while it is what the layer gave: an activation may work in place."""
        block = self._owner.get((call.module, call.part))
        if isinstance(block, MatrixBlock):
            with torch.autocast(output.device.type, enabled=False):  # sums lose most
                outputs = block.layer.signals(call.module, output, call.inputs)
                call.outputs = _summed(outputs, block.layer.present(call.inputs))

    def measure(self, loss: Tensor, parameters: Sequence[Tensor], inputs: Inputs) -> Evaluated:
        """Differentiates a loss that was computed while listening.

        Args:
            loss: With its graph.
            parameters: Whose gradients to return.
            inputs: What to keep of what the layers got.

        Returns:
            Gradients and means.
        """
        noted = self.capture.take()
        if noted.hidden:
            refuse_reentrant_checkpoint([loss])
        with self.capture.suspended():
            found = back_propagate(noted.noted, [loss], [torch.ones_like(loss)], parameters)
        gradients = {p: g for p, g in zip(parameters, found, strict=True) if g is not None}
        calls: dict[int, list[Call]] = {}
        for item in noted.noted:
            block = self._owner.get((item.call.module, item.call.part))
            if block is not None and item.call.gradients:
                calls.setdefault(id(block), []).append(item.call)
        return Evaluated(
            gradients,
            [
                _of_layer(block, calls[id(block)], inputs)
                if isinstance(block, MatrixBlock) and id(block) in calls
                else _of_parameters(block, gradients)
                for block in self.blocks
            ],
        )


def _heard_through(module: nn.Module, layers: set[nn.Module]) -> bool:
    """Whether an output projection is heard through it."""
    return isinstance(module, nn.MultiheadAttention) and module.out_proj in layers


def _of_parameters(block: Block, gradients: dict[Tensor, Tensor]) -> Means | None:
    """Means of parameters that are no matrix: themselves."""
    if isinstance(block, MatrixBlock) or not any(p in gradients for p in block.parameters):
        return None
    values = [p.detach().flatten() for p in block.parameters]
    signals = [gradients.get(p, torch.zeros_like(p)).flatten() for p in block.parameters]
    return Means(at_least_single(torch.cat(values)), at_least_single(torch.cat(signals)))


def _of_layer(block: MatrixBlock, calls: Sequence[Call], inputs: Inputs) -> Means:
    """Means over all calls of a layer."""
    layer = block.layer
    signals, outputs = [], []
    counts: list[Tensor | int] = []
    for call in calls:
        gradient = call.gradients[0]
        delta = layer.signals(call.module, gradient, call.inputs)
        present = layer.present(call.inputs)
        signals.append(_summed(delta, present))
        counts.append(
            delta.shape[0] * delta.shape[1]
            if present is None
            else present.sum((0, 1)).clamp(min=1).unsqueeze(-1)  # [g, 1]
        )
        assert call.outputs is not None
        outputs.append(call.outputs)
    count = sum(counts[1:], counts[0])
    result = Means(sum(outputs[1:], outputs[0]) / count, sum(signals[1:], signals[0]))
    if inputs != "none":
        _add_inputs(result, block, calls, count, inputs)
    return result


def _add_inputs(
    means: Means, block: MatrixBlock, calls: Sequence[Call], count: Tensor | int, inputs: Inputs
) -> None:
    """Fills in ā, and A or its rows."""
    layer = block.layer
    parts = [layer.rows(call.module, call.inputs, call.gradients[0].shape) for call in calls]
    if layer.one_hot:
        indices = torch.cat([part.flatten() for part in parts])
        means.inputs = means.moment = block.frequencies(indices, None, calls) / count
        return
    flat = []
    for call, rows in zip(calls, parts, strict=True):
        present = layer.present(call.inputs)
        flat.append(_wide(rows if present is None else rows * present.unsqueeze(-1)))
    rows = flat[0] if len(flat) == 1 else torch.cat(flat)
    means.inputs = rows.sum(0) / count
    if inputs == "rows":
        grouped = rows.transpose(0, 1) if rows.ndim == 3 else rows
        means.rows = grouped / (
            count.unsqueeze(-1).sqrt() if isinstance(count, Tensor) else count**0.5
        )
    else:
        moment = second_moment(rows.unsqueeze(0))
        means.moment = moment.div_(count.unsqueeze(-1) if isinstance(count, Tensor) else count)


def _wide(rows: Tensor) -> Tensor:
    """[N, R, ...] to [N R, ...], at least in single precision."""
    return at_least_single(rows.flatten(0, 1))


def _summed(values: Tensor, present: Tensor | None) -> Tensor:
    """Σ over entries and positions: [N, R, (g,) o] to [(g,) o]."""
    if present is not None:
        values = values * present.unsqueeze(-1)
    if values.ndim == 3 and values.is_contiguous():  # one product is faster than a sum over rows
        rows = _wide(values)
        return rows.new_ones(len(rows)) @ rows
    return at_least_single(values).sum((0, 1))
