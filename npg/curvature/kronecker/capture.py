"""Listening to a model's layers in an unchanged training loop.

Forward hooks note what each layer got and where its output is in the graph. When the user's own
backward pass reaches the model's output, a hook there hands over the pass, while the graph is still
whole: labels can be drawn and their score propagated then.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from npg.curvature.jacobian import reaches
from npg.curvature.kronecker.attention import Listening, is_attention
from npg.curvature.kronecker.blocks import Batch, Call
from npg.curvature.kronecker.layers import entries
from npg.errors import ConfigurationError

# Forward passes that may wait for a prediction to be handed over; older ones are let go.
WAITING = 8


@dataclass
class Noted:
    """A call and the place of its output in the graph, which keeps no activation alive.

    The output itself would not do: after ``ReLU(inplace=True)`` it is another tensor's value.
    """

    call: Call
    edge: GradientEdge


@dataclass
class Pass:
    """What one forward pass of the model left behind.

    Attributes:
        noted: The calls of its layers, in order.
        batch: What the calls share.
        hidden: Whether a layer was called without a graph, as reentrant checkpointing does.
    """

    noted: list[Noted] = field(default_factory=list)
    batch: Batch = field(default_factory=Batch)
    hidden: bool = False


class Capture:
    """Hooks on layers that note their calls while the model trains with gradients.

    Args:
        model: The module whose forward pass delimits what belongs together.
        layers: Layers to listen to.
        on_pass: Method called with (pass, output) when the model's output is computed.
        on_output: Method called with (pass, output) when a backward pass reaches it.
        on_gradient: Method called with (call, gradient) when a backward pass reaches a call.
        on_call: Method called with (call, output) when a layer is called, before anybody else can
            write to its output.
            The receivers are held weakly: a capture keeps nobody alive. Where there are none,
            passes wait to be taken.
        in_evaluation: Whether to note calls in evaluation mode, too.

    Attributes:
        active: Whether calls are noted at all; off between the steps that need them.
        open: Calls since the last forward pass of the whole model.
        waiting: The last passes of the whole model that nobody received.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Iterable[nn.Module],
        *,
        on_pass: Callable[[Pass, Tensor], None] | None = None,
        on_output: Callable[[Pass, Tensor], None] | None = None,
        on_gradient: Callable[[Call, Tensor], None] | None = None,
        on_call: Callable[[Call, Tensor], None] | None = None,
        in_evaluation: bool = False,
    ) -> None:
        self.active = True
        self.in_evaluation = in_evaluation
        self.open = Pass()
        self.waiting: deque[Pass] = deque(maxlen=WAITING)
        self.model = model
        self.on_pass = _weak(on_pass)
        self.on_output = _weak(on_output)
        self.on_gradient = _weak(on_gradient)
        self.on_call = _weak(on_call)
        self._suspended = False
        layers = list(layers)
        handles: list[RemovableHandle | Listening] = [
            Listening(layer, self)
            if is_attention(layer)
            else layer.register_forward_hook(Hook(self, "layer"), with_kwargs=True)
            for layer in layers
        ]
        handles.append(model.register_forward_hook(Hook(self, "output")))
        self.remove = weakref.finalize(self, _remove, handles)

    @property
    def explicit(self) -> bool:
        """Whether attention is set out; recomputation must do as the first pass did."""
        return self.active and self._in_mode and torch.is_grad_enabled()

    @property
    def listening(self) -> bool:
        """Whether a call now would be noted."""
        return torch.is_grad_enabled() and self._in_forward

    @property
    def _in_mode(self) -> bool:
        return self.in_evaluation or self.model.training

    @property
    def _in_forward(self) -> bool:
        return (
            self.active
            and not self._suspended
            and self._in_mode
            and torch._C._current_graph_task_id() == -1  # no recomputation inside a backward pass
            # Nor under torch.func's transforms, whose tensors must not leave them.
            and torch._C._functorch.peek_interpreter_stack() is None
        )

    @property
    def is_suspended(self) -> bool:
        """Whether what happens now is the library's own doing."""
        return self._suspended

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Notes nothing meanwhile."""
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before

    def layer(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        """Notes one call."""
        if not isinstance(output, Tensor):
            return
        if output.requires_grad:
            self.note(module, args[0] if args else kwargs["input"], output)
        elif self._in_forward and not torch.is_grad_enabled():
            self.open.hidden = True

    def note(self, module: nn.Module, inputs: Tensor, output: Tensor, part: str = "") -> None:
        """Notes that ``module`` made ``output`` of ``inputs``, with its matrix ``part``."""
        if not (self.listening and output.requires_grad):
            return
        call = Call(module, inputs.detach(), part, self.open.batch)
        self.open.batch.samples = self.open.batch.samples or entries(module, inputs)
        self.open.noted.append(Noted(call, get_gradient_edge(output)))
        if self.on_call is not None and (receiver := self.on_call()) is not None:
            receiver(call, output.detach())
        if self.on_gradient is not None:
            # A tensor's hook sees the gradient of the value it had here, whatever happens in place.
            output.register_hook(_WithGradient(self.on_gradient, call))

    def output(self, module: nn.Module, args: tuple[Any, ...], output: object) -> Tensor | None:
        """Closes a pass; has it handed over when a backward pass comes by."""
        if not self.listening:
            self.open.hidden = False
            return None
        noted, self.open = self.open, Pass()
        if noted.hidden:
            refuse_reentrant_checkpoint([output] if isinstance(output, Tensor) else [])
        readable = isinstance(output, Tensor) and output.requires_grad
        if self.on_gradient is None and not (readable and self.on_output is not None):
            if noted.noted:
                self.waiting.append(noted)
            return None
        if not (isinstance(output, Tensor) and output.requires_grad):
            return None
        if self.on_pass is not None and (receiver := self.on_pass()) is not None:
            receiver(noted, output)
        if self.on_output is None:
            return None
        # A copy has a node of its own: its hook can hold the output without holding itself. A view
        # has too, but loses it to whoever writes to the output, to mask logits, say.
        seen = output.clone()
        seen.register_hook(_OnceWithOutput(self.on_output, noted, output))
        return seen

    def take(self) -> Pass:
        """Returns all that waits as one pass, and begins anew."""
        passes = [*self.waiting, self.open]
        self.waiting.clear()
        self.open = Pass()
        return Pass(
            [noted for one in passes for noted in one.noted],
            passes[0].batch,
            any(one.hidden for one in passes),
        )

    def put_back(self, noted: Iterable[Noted]) -> None:
        """Lets calls wait on that another prediction may reach."""
        left = list(noted)
        if left:
            self.waiting.append(Pass(left, left[0].call.batch))


class Hook:
    """A module's hook that keeps nobody alive; a copy of it removes itself when it is called."""

    def __init__(self, capture: Capture | None = None, method: str = "") -> None:
        self.capture = None if capture is None else weakref.ref(capture)
        self.method = method

    def __call__(self, module: nn.Module, *args: Any) -> Tensor | None:
        """Hands the call on, if there is still somebody to hear it."""
        capture = None if self.capture is None else self.capture()
        if capture is None:
            for key, hook in list(module._forward_hooks.items()):
                if hook is self:
                    del module._forward_hooks[key]
            return None
        replaced: Tensor | None = getattr(capture, self.method)(module, *args)
        return replaced

    def __reduce__(self) -> tuple[type["Hook"], tuple[()]]:
        """Copies have nobody to tell."""
        return (Hook, ())


class _WithGradient:
    """A tensor's hook that hands its gradient on, with the call it belongs to."""

    def __init__(self, receiver: weakref.WeakMethod[Any], call: Call) -> None:
        self.receiver = receiver
        self.call = call

    def __call__(self, gradient: Tensor) -> None:
        receiver = self.receiver()
        if receiver is not None:
            receiver(self.call, gradient)


class _OnceWithOutput:
    """A tensor's hook that hands the pass on the first time, and lets go of it."""

    def __init__(self, receiver: weakref.WeakMethod[Any], noted: Pass, output: Tensor) -> None:
        self.receiver = receiver
        self.pending: tuple[Pass, Tensor] | None = (noted, output)

    def __call__(self, gradient: Tensor) -> None:
        pending, self.pending = self.pending, None
        receiver = self.receiver()
        if pending is not None and receiver is not None:
            receiver(*pending)


def back_propagate(
    noted: Sequence[Noted],
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    parameters: Sequence[Tensor] = (),
) -> list[Tensor | None]:
    """Adds to every call the gradient of ⟨outputs, cotangents⟩ in its output.

    Args:
        noted: Calls; one that the outputs do not depend on gets nothing.
        outputs: Tensors with a graph, which is retained.
        cotangents: One per output, of its shape.
        parameters: Further tensors whose gradients are wanted.

    Returns:
        Gradients in ``parameters``, None where nothing reaches them.
    """
    wanted: list[Any] = [*(item.edge for item in noted), *parameters]
    if not wanted:
        return []
    gradients = torch.autograd.grad(
        list(outputs), wanted, list(cotangents), retain_graph=True, allow_unused=True
    )
    for item, gradient in zip(noted, gradients, strict=False):
        if gradient is not None:
            item.call.gradients.append(gradient)
    return list(gradients[len(noted) :])


def refuse_reentrant_checkpoint(outputs: Sequence[Tensor]) -> None:
    """Raises where the layers of a part of the graph cannot be listened to.

    Args:
        outputs: Tensors with the graph.

    Raises:
        ConfigurationError: If reentrant checkpointing is in it.
    """
    if reaches(outputs, "CheckpointFunctionBackward"):
        raise ConfigurationError(
            "reentrant checkpointing hides the layers inside it: "
            "use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
        )


def connected(noted: Sequence[Noted], output: Tensor) -> bool:
    """Whether any of the calls is in the output's graph."""
    wanted = {item.edge.node for item in noted}
    todo, seen = [output.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node in wanted:
            return True
        seen.add(node)
        todo.extend(below for below, _ in node.next_functions)
    return False


def _weak(method: Callable[..., None] | None) -> weakref.WeakMethod[Any] | None:
    return None if method is None else weakref.WeakMethod(method)


def _remove(handles: "list[RemovableHandle | Listening]") -> None:
    for handle in handles:
        handle.remove()
