"""Whether layers form a chain, read off the autograd graph of one prediction."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.distributions import Distribution

from npg.curvature.kronecker import MatrixBlock
from npg.curvature.kronecker.capture import Capture, Pass
from npg.errors import ConfigurationError
from npg.likelihoods import likelihood


class ChainCheck:
    """Looks at the first prediction of a model, and refuses one whose layers are no chain.

    In a chain each layer is used once, in the order of the blocks, and the prediction depends on
    it through the next one alone.

    Args:
        model: Module to listen to until a prediction was seen.
        blocks: Blocks of the layers in the order of the chain.

    Attributes:
        done: Whether a prediction was seen.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[MatrixBlock]) -> None:
        self.model = model
        self.blocks = list(blocks)
        self.done = False
        self._listen()

    def _listen(self) -> None:
        # The layers whose weight is a block's, or whose bias is.
        numbers = {id(p): i for i, block in enumerate(self.blocks) for p in block.parameters}
        self._places: dict[nn.Module, int] = {}
        for module in self.model.modules():
            for parameter in module._parameters.values():
                if parameter is not None and id(parameter) in numbers:
                    self._places[module] = numbers[id(parameter)]
        self._capture = Capture(self.model, self._places, on_output=self._at_output)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the hooks."""
        return {**self.__dict__, "_capture": None, "_places": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores, and listens if there is something left to see."""
        self.__dict__.update(state)
        if not self.done:
            self._listen()

    def observe(self, prediction: Distribution) -> None:
        """Looks at a prediction that was handed over.

        Args:
            prediction: With its graph.

        Raises:
            ConfigurationError: If the layers below it form no chain.
        """
        if not self.done:
            self._check(self._capture.take(), likelihood(prediction).tensors(prediction))

    def _at_output(self, noted: Pass, output: Tensor) -> None:
        if not self.done:
            self._check(noted, [output])

    def stop(self) -> None:
        """Listens no longer."""
        self.done = True
        if self._capture is not None:
            self._capture.remove()

    def _check(self, noted: Pass, outputs: Iterable[Tensor]) -> None:
        if not noted.noted:
            return
        called = [self._places[item.call.module] for item in noted.noted]
        if called != list(range(len(self.blocks))):
            raise _refusal(
                f"its {len(self.blocks)} layers must be used once each, in the order in which the "
                f"model has them, and were used in the order {called}"
            )
        edges = [item.edge for item in noted.noted]
        above: list[Node | None] = [output.grad_fn for output in outputs]
        for i in reversed(range(len(edges))):
            reached = _reached(above, edges, i)
            if reached != {i}:
                later = "the prediction" if i == len(edges) - 1 else f"layer {i + 1}"
                found = ", ".join(map(str, sorted(reached))) or "no layer"
                raise _refusal(f"{later} must take in layer {i} alone, and takes in {found}")
            above = [edges[i].node]
        self.stop()


def _reached(above: Sequence[Node | None], edges: Sequence[GradientEdge], stop: int) -> set[int]:
    """Layers that nodes depend on, seen from above layer ``stop``, whose output ends a path."""
    places = {edge.node: i for i, edge in enumerate(edges)}
    start = edges[stop + 1].node if stop + 1 < len(edges) else None
    todo, seen, found = list(above), set(), set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in places and node is not start:
            found.add(places[node])
            continue
        todo.extend(below for below, _ in node.next_functions)
    return found


def _refusal(why: str) -> ConfigurationError:
    return ConfigurationError(
        f'inverse="block-tridiagonal" is for a chain of layers: {why}. For skip connections, '
        'branches and layers used twice choose inverse="block-diagonal"'
    )
