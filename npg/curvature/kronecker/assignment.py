"""Which parameters of a model form a block, and which layers' calls it is measured from."""

from collections.abc import Iterable

from torch import Tensor, nn

from npg.curvature.kronecker.attention import (
    PROJECTIONS,
    InProjectionLayer,
    is_attention,
    projections,
)
from npg.curvature.kronecker.blocks import Block, FreeBlock, MatrixBlock, Sharing, VectorBlock
from npg.curvature.kronecker.layers import MATRIX_LAYERS, LinearLayer, MatrixLayer
from npg.curvature.kronecker.normalisation import NORMALISATIONS, NormalisationLayer
from npg.errors import ConfigurationError

LayerKind = type[MatrixLayer] | type[NormalisationLayer]
Place = tuple[nn.Module, str]  # a layer, and which of its matrices where it has several


def assign(
    model: nn.Module,
    parameters: Iterable[Tensor] | None,
    sharing: Sharing,
    keep_rows: bool,
) -> tuple[list[Block], dict[Place, Block]]:
    """Sorts the parameters into blocks; a weight that several layers share has one.

    Args:
        model: Module whose parameters to sort.
        parameters: Restricts it to these. Frozen ones are left out.
        sharing: What matrix blocks make of positions.
        keep_rows: Whether matrix blocks keep their rows.

    Returns:
        The blocks, one per layer in the order of the model's modules, then free parameters; and
        the block of each layer.

    Raises:
        ConfigurationError: If nothing of the model can be trained.
    """
    wanted = {id(p) for p in (model.parameters() if parameters is None else parameters)}

    def trained(module: nn.Module, name: str | None) -> Tensor | None:
        parameter = None if name is None else module._parameters.get(name)
        if parameter is None or not parameter.requires_grad or id(parameter) not in wanted:
            return None
        return parameter

    places = {(module, part): found for module, part, found in _layers(model)}
    uses: dict[int, list[Place | None]] = {}
    for module in model.modules():
        known = {
            name: (m, part) for (m, part), (_, names) in places.items() if m is module
            for name in names
        }  # fmt: skip
        for name, parameter in module._parameters.items():
            if parameter is not None:
                uses.setdefault(id(parameter), []).append(known.get(name))
    blocks: list[Block] = []
    owner: dict[Place, Block] = {}
    placed: set[int] = set()
    for (module, _), (kind, names) in places.items():
        weight, bias = (trained(module, name) for name in names)
        own = [p for p in (weight, bias) if p is not None]
        if not own or any(id(p) in placed for p in own):
            continue
        sharers = {place for p in own for place in uses[id(p)]}
        # Layers may share all they have, in the same way; anything else stays free.
        alike = all(
            place is not None
            and places[place][0] is kind
            and [id(trained(place[0], name)) for name in places[place][1]] == [id(weight), id(bias)]
            for place in sharers
        )
        if not alike:
            continue
        layer = kind(module, weight, bias)
        block: Block = (
            MatrixBlock(layer, sharing, keep_rows)
            if isinstance(layer, MatrixLayer)
            else VectorBlock(layer)
        )
        blocks.append(block)
        placed |= {id(p) for p in own}
        owner.update({place: block for place in sharers if place is not None})
    blocks += [
        FreeBlock(p)
        for p in model.parameters()
        if p.requires_grad and id(p) in wanted and id(p) not in placed
    ]
    if not blocks:
        raise ConfigurationError("none of the model's parameters can be trained")
    return blocks, owner


def _layers(
    model: nn.Module,
) -> Iterable[tuple[nn.Module, str, tuple[LayerKind, tuple[str | None, str | None]]]]:
    """Every layer of a known kind, with the names of its weight and bias."""
    unheard = {
        module.out_proj
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) and not is_attention(module)
    }
    for module in model.modules():
        if is_attention(module):
            for part, names in projections(module).items():
                yield (
                    module,
                    part,
                    (LinearLayer if part in PROJECTIONS else InProjectionLayer, names),
                )
            continue
        kind = layer_kind(module)
        if kind is not None and module not in unheard:
            yield module, "", (kind, ("weight", "bias"))


def layer_kind(module: nn.Module) -> LayerKind | None:
    """What a module is to K-FAC; None where its forward pass is not that of a known layer."""
    forward = type(module).forward
    for cls, kind in MATRIX_LAYERS.items():
        if isinstance(module, cls) and forward is cls.forward:
            return kind
    if any(isinstance(module, cls) and forward is cls.forward for cls in NORMALISATIONS):
        return NormalisationLayer
    return None
