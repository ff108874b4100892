"""A block-diagonal estimate of the Fisher matrix of a model, gathered while it trains."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from npg.curvature.drawn import check_observed, drawn_score, propagated, telling, without_nan
from npg.curvature.fisher import Fisher
from npg.curvature.kronecker.assignment import assign
from npg.curvature.kronecker.blocks import Call, FreeBlock, Sharing
from npg.curvature.kronecker.capture import (
    Capture,
    Pass,
    back_propagate,
    connected,
    refuse_reentrant_checkpoint,
)
from npg.curvature.kronecker.collective import Begun, average, begin, groups_beside
from npg.curvature.kronecker.roots import fisher_columns
from npg.errors import ConfigurationError
from npg.likelihoods import as_distribution, likelihood

FisherKind = Literal["exact", "sampled", "empirical"]
Reduction = Literal["mean", "sum"]
# Products with the Fisher matrix that a free block may cost where they are not hand-written: the
# exact kind takes its time.
FEW_PRODUCTS: dict[FisherKind, int] = {"exact": 256, "sampled": 4, "empirical": 0}

Family = str | Callable[[Tensor], Distribution] | None


class KroneckerFisher:
    """Second moments of every layer of a model, K-FAC's view of its Fisher matrix.

    The batch is dimension 0 of every layer's input; attention layers know theirs. Sequences that
    come first count as entries: that is no harm to "expand", but "reduce" and normalisation layers
    would average over the batch instead, so let such models be ``batch_first``.

    Args:
        model: Module to listen to; a DistributedDataParallel wrapper is looked through.
        parameters: Restricts it to a part of the model's parameters. Frozen ones are left out.
        family: How the model's output parametrises its prediction, see
            :func:`npg.likelihoods.as_distribution`; None where predictions are handed over by
            :meth:`observe`.
        kind: ``"exact"`` propagates all columns of the output's Fisher matrix, ``"sampled"`` one
            label per sample from the model's own prediction, ``"empirical"`` takes the gradients
            of the user's loss. Exact columns get a random sign per sample, which changes nothing
            while samples do not meet in the model, and makes the estimate unbiased where they do:
            attention between positions that are predicted, batch normalisation.
        reduction: How the user's loss averages over samples; only the empirical kind asks.
        sharing: ``"expand"`` or ``"reduce"``, see :mod:`npg.curvature.kronecker.blocks`.
        generator: Source of labels and signs. Default: torch's global one.
        keep_rows: Whether blocks keep each step's rows, for moments in another basis.
        distributed: Whether :meth:`finite` and :meth:`update` first add up the sums of all ranks
            of ``torch.distributed``. All ranks have to call them together; one that measured
            nothing takes part with zeros. From the second time on, unless the kind is empirical, a
            step's first sums are on their way while its backward pass goes on: a copy that is made
            then begins without them.
        in_evaluation: Whether to listen in evaluation mode, too, as a policy's update wants it.

    Attributes:
        blocks: One per layer, in the order of the model's modules, then free parameters.
        seen: Batches measured since the last update.

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
        distributed: bool = False,
        in_evaluation: bool = False,
    ) -> None:
        self.family = family
        self.kind = kind
        self.reduction = reduction
        self.sharing: Sharing = sharing
        self.generator = generator
        self.keep_rows = keep_rows
        self.distributed = distributed
        self.in_evaluation = in_evaluation
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        self.model: nn.Module = model
        self.blocks, self._owner = assign(model, parameters, sharing, keep_rows)
        self.seen = 0
        self._calls: list[Call] = []
        self._begun: Begun | None = None
        self._group: torch.distributed.ProcessGroup | None = None
        self._averaged = False
        self.listen()

    def listen(self) -> None:
        """Hooks the model; a copy or a loaded estimator must begin anew with its own."""
        self.paused = False
        empirical = self.kind == "empirical"
        layers = {module for module, _ in self._owner}
        heard = layers | {
            module
            for module in self.model.modules()  # whose output projection is heard through it
            if isinstance(module, nn.MultiheadAttention) and module.out_proj in layers
        }
        self.capture = Capture(
            self.model,
            (module for module in self.model.modules() if module in heard),
            on_pass=self._at_pass if empirical else None,
            on_output=None if empirical or self.family is None else self._at_output,
            on_gradient=self._at_gradient if empirical else None,
            in_evaluation=self.in_evaluation,
        )

    def pause(self) -> None:
        """Takes the hooks off the model until :meth:`listen`, and forgets what they caught."""
        self.clear()
        self.capture.remove()
        self.paused = True

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the hooks and what they caught."""
        without: dict[str, Any] = {"capture": None, "_calls": [], "_begun": None, "_group": None}
        return {**self.__dict__, **without}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores, and listens."""
        self.__dict__.update(state)
        self.listen()
        if self.paused:
            self.pause()

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
            ConfigurationError: If the prediction has no graph, nothing of the model was noted that
                it could come from, the mask does not fit, or the kind is empirical.
        """
        if not self.capture.active:
            return
        if self.kind == "empirical":
            raise ConfigurationError('fisher="empirical" observes no prediction: leave it out')
        check_observed(prediction, mask)
        noted = self.capture.take()
        if noted.hidden:
            tensors = likelihood(prediction).tensors(prediction)
            refuse_reentrant_checkpoint([t for t in tensors if t.requires_grad])
        if self._owner and not noted.noted:
            raise ConfigurationError(
                "none of the model's layers was called in training mode, with gradients, since the "
                "last prediction: call model.train() before the prediction is computed, and "
                "observe each one once; with likelihood=, outputs that are tensors need no "
                "observe, nor do distributions that a closure returns: leave out of these what a "
                "mask would"
            )
        self._measure(noted, prediction, mask)
        self.capture.put_back(item for item in noted.noted if not item.call.gradients)

    def observe_by_hand(
        self, prediction: Distribution, propagate: Callable[[Sequence[Tensor]], Sequence[Call]]
    ) -> None:
        """Measures where the passes are written by hand, so that there is nothing to listen to.

        Args:
            prediction: What the model predicted; all but free parameters may be outside the graph.
            propagate: From scores in the prediction's tensors to calls of the layers, with inputs
                and gradients. Neither is kept.

        Raises:
            ConfigurationError: If the kind is not sampled.
        """
        if self.kind != "sampled":
            raise ConfigurationError('only fisher="sampled" is observed by hand')
        samples = prediction.batch_shape.numel()
        tensors = likelihood(prediction).tensors(prediction)
        scores = drawn_score(prediction, self.generator)
        drawn = [telling(t, s) for t, s in zip(tensors, scores, strict=True)]
        with torch.no_grad():
            calls = propagate(drawn)
        estimated = self._estimated(prediction, None, samples)
        if estimated:
            self._measure_drawn(Pass(), tensors, drawn, None, estimated, samples)
        self._collect(calls, samples)

    def _at_output(self, noted: Pass, output: Tensor) -> None:
        """Measures when the user's backward pass reaches the model's output."""
        self._measure(noted, self._read(output), None)

    def _read(self, output: Tensor) -> Distribution:
        with torch.enable_grad():
            return as_distribution(output, self.family)

    def _measure(self, noted: Pass, prediction: Distribution, mask: Tensor | None) -> None:
        """Propagates scores of the prediction to every layer, and adds their moments."""
        tensors = likelihood(prediction).tensors(prediction)
        samples = prediction.batch_shape.numel() if mask is None else int(mask.sum())
        if samples == 0:
            return
        with self.capture.suspended():
            estimated = self._estimated(prediction, mask, samples)
            if self.kind == "exact":
                # Tensors that no layer computes, a policy's σ, would cost passes for nothing.
                above = [t.requires_grad and connected(noted.noted, t) for t in tensors]
                reached = [t for t, layers in zip(tensors, above, strict=True) if layers]
                for column in fisher_columns(without_nan(prediction), above):
                    signed = self._signed(column, prediction.batch_shape)
                    self._propagate(noted, reached, signed, mask, [])
            if self.kind == "sampled" or estimated:
                drawn = drawn_score(prediction, self.generator)
                nodes = noted if self.kind == "sampled" else Pass()
                self._measure_drawn(nodes, tensors, drawn, mask, estimated, samples)
        self._collect([item.call for item in noted.noted if item.call.gradients], samples, mask)

    def _measure_drawn(
        self,
        noted: Pass,
        tensors: Sequence[Tensor],
        drawn: Sequence[Tensor],
        mask: Tensor | None,
        estimated: list[FreeBlock],
        samples: int,
    ) -> None:
        totals = self._propagate(noted, tensors, drawn, mask, estimated)
        for block, total in zip(estimated, totals, strict=True):
            if total is not None:
                block.measure_total(total, samples)

    def _signed(self, column: Iterable[Tensor], batch: torch.Size) -> list[Tensor]:
        """Gives every sample's entries a sign, so that samples that meet have no cross terms."""
        column = list(column)
        if batch.numel() < 2 or not column:
            return column
        device = None if self.generator is None else self.generator.device
        drawn = torch.randint(2, batch, generator=self.generator, device=device)
        signs = (2 * drawn - 1).to(column[0])
        return [c * signs.reshape(signs.shape + (1,) * (c.ndim - signs.ndim)) for c in column]

    def _propagate(
        self,
        noted: Pass,
        tensors: Sequence[Tensor],
        cotangents: Iterable[Tensor],
        mask: Tensor | None,
        free: list[FreeBlock],
    ) -> list[Tensor | None]:
        outputs, seeds = propagated(tensors, list(cotangents), mask)
        free_parameters = [block.parameters[0] for block in free]
        return back_propagate(noted.noted, outputs, seeds, free_parameters)

    def _estimated(
        self, prediction: Distribution, mask: Tensor | None, samples: int
    ) -> list[FreeBlock]:
        """Measures what free blocks it can exactly, and returns the others."""
        return [b for b in self._free if not self._exact(b, prediction, mask, samples)]

    def _exact(
        self, block: FreeBlock, prediction: Distribution, mask: Tensor | None, samples: int
    ) -> bool:
        """Measures a free block by products with the Fisher matrix, where these are cheap."""
        if not (block.whole or self.kind == "exact"):
            return False
        try:
            matrix = Fisher(block.parameters, prediction, weights=mask)
        except ConfigurationError:  # it takes no part in this prediction
            return True
        cheap = block.whole and matrix.jacobian.recognised
        if not (cheap or matrix.shape[0] <= FEW_PRODUCTS[self.kind]):
            return False
        try:
            moment = matrix.to_dense() if block.whole else matrix.diagonal()
        except RuntimeError:  # fused kernels above it cannot be differentiated twice
            return False
        block.measure_exactly(moment, samples)
        return True

    def _at_pass(self, noted: Pass, output: Tensor) -> None:
        """Counts the samples of a forward pass, for the empirical Fisher."""
        if self.family is not None:
            noted.batch.samples = self._read(output).batch_shape.numel()

    def _at_gradient(self, call: Call, gradient: Tensor) -> None:
        """Takes a call's gradient of the user's loss, for the empirical Fisher."""
        if self.capture.is_suspended:
            return
        if call.gradients:  # a second backward pass through the same graph
            call.gradients[0] = call.gradients[0] + gradient
        else:
            call.gradients.append(gradient.detach())
            self._calls.append(call)

    def _collect(self, calls: Sequence[Call], samples: int, mask: Tensor | None = None) -> None:
        by_block: dict[int, list[Call]] = {}
        for call in calls:
            block = self._owner.get((call.module, call.part))
            if block is not None:  # else a frozen projection beside one that is not
                by_block.setdefault(id(block), []).append(call)
        for block in self.blocks:
            if id(block) in by_block:
                block.measure(by_block[id(block)], samples, mask)
        self.seen += 1
        self._averaged = False
        if self._group is not None and self.kind != "empirical" and self._begun is None:
            self._begun = begin(self.blocks, self._group)

    def finish(self) -> None:
        """Measures what only the end of all backward passes tells: the empirical Fisher."""
        calls, self._calls = self._calls, []
        self.capture.take()
        if not calls:
            return
        # Passes that no backward pass reached do not count.
        batches = {id(call.batch): call.batch.samples for call in calls}
        samples = sum(batches.values())
        scale = samples if self.reduction == "mean" else 1
        by_batch: dict[int, list[Call]] = {batch: [] for batch in batches}
        for call in calls:
            scaled = [gradient * scale for gradient in call.gradients]
            by_batch[id(call.batch)].append(replace(call, gradients=scaled))
            call.gradients.clear()  # a later backward pass through the same graph begins anew
        for batch, own in by_batch.items():
            self._collect(own, batches[batch])
        for block in self._free:
            gradient = block.parameters[0].grad
            if gradient is not None:
                block.measure_total(gradient.detach() * scale, samples)

    def finite(self) -> Tensor:
        """Whether all sums of this step are finite, as a tensor on the device."""
        self._average()
        traces = [trace for block in self.blocks for trace in block.traces()]
        if not traces:
            return torch.ones((), dtype=torch.bool, device=self.blocks[0].parameters[0].device)
        return torch.isfinite(torch.stack([trace.float() for trace in traces])).all()

    def update(self, decay: float) -> None:
        """Lets this step's sums enter the running means."""
        self._average()
        for block in self.blocks:
            block.update(decay)
        self.seen = 0
        self._averaged = False

    def _average(self) -> None:
        """Adds up the sums of all ranks, once."""
        if self.distributed and not self._averaged:
            if self._group is None:  # now, since all ranks are here
                self._group = groups_beside(torch.distributed.group.WORLD).take(self)
            average(self.blocks, self._group, self._begun)
            self._begun = None
            self._averaged = True

    def discard(self) -> None:
        """Forgets this step's sums, on all ranks together: some may have sent theirs already."""
        self._average()
        self.clear()

    def clear(self) -> None:
        """Forgets this step's sums; those that were sent must have been sent by all ranks."""
        for block in self.blocks:
            block.clear()
        self.seen = 0
        self._calls = []
        self._begun = None
        self._averaged = False
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
