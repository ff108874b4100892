"""A block-diagonal estimate of the Fisher matrix of a model, gathered while it trains."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from npg.curvature.fisher import Fisher
from npg.curvature.kronecker.blocks import (
    Block,
    Call,
    FreeBlock,
    MatrixBlock,
    Sharing,
    VectorBlock,
)
from npg.curvature.kronecker.capture import Capture, Pass, back_propagate
from npg.curvature.kronecker.layers import MATRIX_LAYERS, MatrixLayer
from npg.curvature.kronecker.normalisation import NORMALISATIONS, NormalisationLayer
from npg.curvature.kronecker.roots import fisher_columns
from npg.curvature.matrix import math_attention
from npg.errors import ConfigurationError
from npg.likelihoods import as_distribution, detached, likelihood, score

FisherKind = Literal["exact", "sampled", "empirical"]
Reduction = Literal["mean", "sum"]
# Products with the Fisher matrix that a free block may cost where they are not hand-written.
FEW_PRODUCTS = 4

Family = str | Callable[[Tensor], Distribution] | None


class KroneckerFisher:
    """Second moments of every layer of a model, K-FAC's view of its Fisher matrix.

    Args:
        model: Module to listen to; a DistributedDataParallel wrapper is looked through.
        parameters: Restricts it to a part of the model's parameters. Frozen ones are left out.
        family: How the model's output parametrises its prediction, see
            :func:`npg.likelihoods.as_distribution`; None where predictions are handed over by
            :meth:`observe`.
        kind: ``"exact"`` propagates all columns of the output's Fisher matrix, ``"sampled"`` one
            label per sample from the model's own prediction, ``"empirical"`` takes the gradients
            of the user's loss.
        reduction: How the user's loss averages over samples; only the empirical kind asks.
        sharing: ``"expand"`` or ``"reduce"``, see :mod:`npg.curvature.kronecker.blocks`.
        generator: Source of labels.
        keep_rows: Whether blocks keep each step's rows, for moments in another basis.

    Attributes:
        blocks: One per layer, in the order of the model's modules, then free parameters.

    Raises:
        ConfigurationError: If nothing of the model can be trained, or the arguments do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Iterable[Tensor] | None = None,
        *,
        family: Family = None,
        kind: FisherKind = "sampled",
        reduction: Reduction = "mean",
        sharing: Sharing = "expand",
        generator: torch.Generator | None = None,
        keep_rows: bool = False,
    ) -> None:
        self.family = family
        self.kind = kind
        self.reduction = reduction
        self.sharing: Sharing = sharing
        self.generator = generator
        self.keep_rows = keep_rows
        self.model = model
        self.blocks, self._owner = self._find(model, parameters)
        self.seen = 0  # batches measured since the last update
        self._calls: list[Call] = []
        self._samples = 0
        self.listen()

    def listen(self) -> None:
        """Hooks the model; a copy or a loaded estimator must begin anew with its own."""
        empirical = self.kind == "empirical"
        self.capture = Capture(
            self.model,
            (module for module in self.model.modules() if module in self._owner),
            on_pass=self._at_pass if empirical else None,
            on_output=None if empirical or self.family is None else self._at_output,
            on_gradient=self._at_gradient if empirical else None,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the hooks and what they caught."""
        return {**self.__dict__, "capture": None, "_calls": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores, and listens."""
        self.__dict__.update(state)
        self.listen()

    def _find(
        self, model: nn.Module, parameters: Iterable[Tensor] | None
    ) -> tuple[list[Block], dict[nn.Module, Block]]:
        """Sorts the parameters into blocks; a weight that several layers share has one."""
        wanted = {id(p) for p in (model.parameters() if parameters is None else parameters)}

        def trained(module: nn.Module, name: str) -> Tensor | None:
            parameter = module._parameters.get(name)
            if parameter is None or not parameter.requires_grad or id(parameter) not in wanted:
                return None
            return parameter

        uses: dict[int, list[nn.Module]] = {}
        for module in model.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    uses.setdefault(id(parameter), []).append(module)
        blocks: list[Block] = []
        owner: dict[nn.Module, Block] = {}
        placed: set[int] = set()
        for module in model.modules():
            kind = layer_kind(module)
            weight, bias = trained(module, "weight"), trained(module, "bias")
            own = [p for p in (weight, bias) if p is not None]
            if kind is None or not own or any(id(p) in placed for p in own):
                continue
            sharers = {m for p in own for m in uses[id(p)]}
            # Layers may share all they have, in the same way; anything else stays free.
            alike = all(
                layer_kind(m) is kind
                and trained(m, "weight") is weight
                and trained(m, "bias") is bias
                for m in sharers
            )
            if not alike:
                continue
            layer = kind(module, weight, bias)
            block: Block = (
                MatrixBlock(layer, self.sharing, self.keep_rows)
                if isinstance(layer, MatrixLayer)
                else VectorBlock(layer)
            )
            blocks.append(block)
            placed |= {id(p) for p in own}
            owner.update(dict.fromkeys(sharers, block))
        blocks += [
            FreeBlock(p)
            for p in model.parameters()
            if p.requires_grad and id(p) in wanted and id(p) not in placed
        ]
        if not blocks:
            raise ConfigurationError("none of the model's parameters can be trained")
        return blocks, owner

    @property
    def _free(self) -> list[FreeBlock]:
        return [block for block in self.blocks if isinstance(block, FreeBlock)]

    def observe(self, prediction: Distribution, mask: Tensor | None = None) -> None:
        """Measures from a prediction of what the model just computed; its graph is kept.

        Args:
            prediction: Distribution whose tensors have their graph, one sample per element of
                ``batch_shape``.
            mask: Which samples count, bool of shape ``batch_shape``. Default: all.

        Raises:
            ConfigurationError: If the prediction has no graph, or the kind is empirical.
        """
        if not self.capture.active:
            return
        if self.kind == "empirical":
            raise ConfigurationError('fisher="empirical" observes no prediction: leave it out')
        if not any(t.requires_grad for t in likelihood(prediction).tensors(prediction)):
            raise ConfigurationError(
                "the prediction has no graph: compute it in training mode, with gradients"
            )
        self._measure(self.capture.take(), prediction, mask)

    def _at_output(self, noted: Pass, output: Tensor) -> None:
        """Measures when the user's backward pass reaches the model's output."""
        self._measure(noted, self._read(output), None)

    def _read(self, output: Tensor) -> Distribution:
        with torch.enable_grad():
            return as_distribution(output, self.family)

    def _measure(self, noted: Pass, prediction: Distribution, mask: Tensor | None) -> None:
        """Propagates scores of the prediction to every layer, and adds their moments."""
        family = likelihood(prediction)
        tensors = family.tensors(prediction)
        samples = prediction.batch_shape.numel() if mask is None else int(mask.sum())
        if samples == 0:
            return
        outside = detached(prediction)
        with self.capture.suspended(), math_attention():
            estimated = [block for block in self._free if not self._exact(block, prediction, mask)]
            if self.kind == "exact":
                for column in fisher_columns(outside):
                    self._propagate(noted, tensors, column, mask, [])
            if self.kind == "sampled" or estimated:
                drawn = score(outside, family.sample(outside, self.generator))
                nodes = noted if self.kind == "sampled" else Pass()
                totals = self._propagate(nodes, tensors, drawn, mask, estimated)
                for block, total in zip(estimated, totals, strict=True):
                    if total is not None:
                        block.measure_total(total, samples)
        self._collect([item.call for item in noted.noted if item.call.gradients], samples)

    def _propagate(
        self,
        noted: Pass,
        tensors: Sequence[Tensor],
        cotangents: Iterable[Tensor],
        mask: Tensor | None,
        free: list[FreeBlock],
    ) -> list[Tensor | None]:
        pairs = [
            (tensor, _masked(cotangent, mask))
            for tensor, cotangent in zip(tensors, cotangents, strict=True)
            if tensor.requires_grad
        ]
        return back_propagate(
            noted.noted,
            [tensor for tensor, _ in pairs],
            [cotangent for _, cotangent in pairs],
            [block.parameters[0] for block in free],
        )

    def _exact(self, block: FreeBlock, prediction: Distribution, mask: Tensor | None) -> bool:
        """Measures a free block by products with the Fisher matrix, where these are cheap."""
        if not block.whole:
            return False
        try:
            matrix = Fisher(block.parameters, prediction, weights=mask)
        except ConfigurationError:  # it takes no part in this prediction
            return True
        cheap = matrix.jacobian.recognised or matrix.shape[0] <= FEW_PRODUCTS
        if cheap:
            block.measure_exactly(matrix.to_dense())
        return cheap

    def _at_pass(self, noted: Pass, output: Tensor) -> None:
        """Counts the samples of a forward pass, for the empirical Fisher."""
        known = self.family is not None
        self._samples += self._read(output).batch_shape.numel() if known else noted.entries

    def _at_gradient(self, call: Call, gradient: Tensor) -> None:
        """Takes a call's gradient of the user's loss, for the empirical Fisher."""
        if call.gradients:  # a second backward pass through the same graph
            call.gradients[0] = call.gradients[0] + gradient
        else:
            call.gradients.append(gradient.detach())
            self._calls.append(call)

    def _collect(self, calls: list[Call], samples: int) -> None:
        by_block: dict[int, list[Call]] = {}
        for call in calls:
            by_block.setdefault(id(self._owner[call.module]), []).append(call)
        for block in self.blocks:
            if id(block) in by_block:
                block.measure(by_block[id(block)], samples)
        self.seen += 1

    def finish(self) -> None:
        """Measures what only the end of all backward passes tells: the empirical Fisher."""
        calls, self._calls = self._calls, []
        left, samples = self.capture.take(), self._samples
        self._samples = 0
        if not calls:
            return
        samples = samples or left.entries
        scale = samples if self.reduction == "mean" else 1
        for call in calls:
            call.gradients = [gradient * scale for gradient in call.gradients]
        self._collect(calls, samples)
        for block in self._free:
            gradient = block.parameters[0].grad
            if gradient is not None:
                block.measure_total(gradient.detach() * scale, samples)

    def finite(self) -> Tensor:
        """Whether all sums of this step are finite, as a tensor on the device."""
        traces = [trace for block in self.blocks for trace in block.traces()]
        return torch.isfinite(torch.stack([trace.float() for trace in traces])).all()

    def update(self, decay: float) -> None:
        """Lets this step's sums enter the running means."""
        for block in self.blocks:
            block.update(decay)
        self.seen = 0

    def clear(self) -> None:
        """Forgets this step's sums."""
        for block in self.blocks:
            block.clear()
        self.seen = 0
        self._calls = []
        self._samples = 0
        self.capture.take()

    def state(self) -> list[dict[str, Any]]:
        """Running means of every block, in order."""
        return [{"moments": block.moments, "updates": block.updates} for block in self.blocks]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Restores what :meth:`state` gave."""
        if len(state) != len(self.blocks):
            raise ConfigurationError(
                f"the state is of {len(state)} blocks, this model has {len(self.blocks)}"
            )
        for block, entry in zip(self.blocks, state, strict=True):
            like = block.parameters[0]
            block.moments = [m.to(like.device, copy=True) for m in entry["moments"]]
            block.updates = int(entry["updates"])


def layer_kind(module: nn.Module) -> type[MatrixLayer] | type[NormalisationLayer] | None:
    """What a module is to K-FAC; None where its forward pass is not that of a known layer."""
    forward = type(module).forward
    for cls, kind in MATRIX_LAYERS.items():
        if isinstance(module, cls) and forward is cls.forward:
            return kind
    if isinstance(module, NORMALISATIONS):
        return NormalisationLayer
    return None


def _masked(cotangent: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return cotangent
    kept = mask.bool().reshape(mask.shape + (1,) * (cotangent.ndim - mask.ndim))
    return torch.where(kept, cotangent, 0.0)
