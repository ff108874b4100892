"""Rows and signals of every layer: Σ δ aᵀ is autograd's gradient, in the layer's matrix."""

import pytest
import torch
from torch import nn

from npg.curvature.kronecker.assignment import layer_kind
from npg.curvature.kronecker.layers import MatrixLayer, entries

LAYERS = {
    "linear": (lambda: nn.Linear(3, 2), (5, 3)),
    "linear without bias": (lambda: nn.Linear(3, 2, bias=False), (5, 3)),
    "linear on a sequence": (lambda: nn.Linear(3, 2), (5, 4, 3)),
    "linear on a grid": (lambda: nn.Linear(3, 2), (5, 4, 2, 3)),
    "linear on a vector": (lambda: nn.Linear(3, 2), (3,)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), (3, 2, 7)),
    "conv1d same": (lambda: nn.Conv1d(2, 4, 4, padding="same", dilation=2), (3, 2, 9)),
    "conv1d circular": (
        lambda: nn.Conv1d(2, 4, 3, padding=2, padding_mode="circular"),
        (3, 2, 7),
    ),
    "conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (2, 2, 6, 5)),
    "conv2d without bias": (lambda: nn.Conv2d(2, 3, 3, bias=False), (2, 2, 5, 4)),
    "conv2d valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (2, 2, 5, 4)),
    "conv2d same circular": (
        lambda: nn.Conv2d(2, 3, (4, 3), padding="same", padding_mode="circular"),
        (2, 2, 6, 5),
    ),
    "conv2d reflected": (
        lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect", dilation=2),
        (2, 2, 6, 7),
    ),
    "conv2d replicated": (
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"),
        (2, 2, 4, 4),
    ),
    "conv2d in groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 4, 5)),
    "conv2d by channel": (lambda: nn.Conv2d(3, 6, 3, groups=3, dilation=2), (2, 3, 6, 5)),
    "conv2d of one image": (lambda: nn.Conv2d(2, 3, 3, groups=1), (2, 5, 4)),
    "conv3d": (
        lambda: nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 1), padding=(0, 1, 2)),
        (2, 2, 4, 5, 3),
    ),
    "transposed conv1d": (
        lambda: nn.ConvTranspose1d(2, 3, 3, stride=3, output_padding=2, padding=1),
        (3, 2, 4),
    ),
    "transposed conv2d": (
        lambda: nn.ConvTranspose2d(
            4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2, dilation=2
        ),
        (2, 4, 3, 4),
    ),
    "transposed conv2d, cropped": (lambda: nn.ConvTranspose2d(2, 3, 2, padding=2), (2, 2, 5, 5)),
    "transposed conv2d of one image": (lambda: nn.ConvTranspose2d(2, 3, 2), (2, 3, 4)),
    "transposed conv3d": (
        lambda: nn.ConvTranspose3d(2, 3, 2, stride=2, dilation=(1, 2, 1), bias=False),
        (2, 2, 2, 3, 2),
    ),
}


def _exercised(
    layer: nn.Module, x: torch.Tensor, output_size: list[int] | None = None
) -> tuple[MatrixLayer, torch.Tensor, torch.Tensor]:
    """The layer as a matrix, Σ δ aᵀ, and the matrix of autograd's gradients."""
    trained = [p for p in layer.parameters() if p.requires_grad]
    y = layer(x) if output_size is None else layer(x, output_size=output_size)
    cotangent = torch.randn_like(y)
    gradients = torch.autograd.grad(y, trained, cotangent)
    named = {
        name: p if p is not None and p.requires_grad else None
        for name, p in layer._parameters.items()
    }
    matrix_layer = layer_kind(layer)(layer, named["weight"], named.get("bias"))
    rows = matrix_layer.rows(layer, x, y.shape)
    signals = matrix_layer.signals(layer, cotangent, x)
    if matrix_layer.one_hot:
        rows = torch.nn.functional.one_hot(rows, layer.num_embeddings).to(signals)
    if rows.ndim == 4:
        product = torch.einsum("nrgo,nrgd->god", signals, rows)
    else:
        product = torch.einsum("nro,nrd->od", signals, rows)
    matrix = matrix_layer.matrix(gradients)
    for found, gradient in zip(matrix_layer.gradients(matrix), gradients, strict=True):
        assert torch.equal(found, gradient)
    assert len(rows) == entries(layer, x)
    return matrix_layer, product, matrix


class TestGradients:
    @pytest.mark.parametrize("name", LAYERS)
    def test_are_the_products_of_signals_and_rows(self, name):
        make, shape = LAYERS[name]
        _, product, matrix = _exercised(make(), torch.randn(shape))
        torch.testing.assert_close(product, matrix, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("size", [[7, 7], [8, 7], [8, 8]])
    def test_of_a_transposed_convolution_that_is_told_its_output(self, size):
        layer = nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1)
        _, product, matrix = _exercised(layer, torch.randn(6, 2, 4, 4), size)
        torch.testing.assert_close(product, matrix, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("frozen", ["weight", "bias"])
    @pytest.mark.parametrize(
        "name", ["linear", "conv2d in groups", "transposed conv1d", "transposed conv2d"]
    )
    def test_of_the_part_that_is_trained(self, name, frozen):
        make, shape = LAYERS[name]
        layer = make()
        getattr(layer, frozen).requires_grad_(False)
        matrix_layer, product, matrix = _exercised(layer, torch.randn(shape))
        assert len(matrix_layer.parameters) == 1
        torch.testing.assert_close(product, matrix, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("padding", [None, 0, 3])
    @pytest.mark.parametrize("shape", [(6,), (3, 4), (2, 3, 2), ()])
    def test_of_an_embedding(self, shape, padding):
        layer = nn.Embedding(5, 2, padding_idx=padding)
        _, product, matrix = _exercised(layer, torch.randint(5, shape))
        torch.testing.assert_close(product, matrix, rtol=1e-12, atol=0)


class TestKinds:
    def test_a_forward_pass_of_somebody_else_is_none(self):
        class Doubled(nn.Linear):
            def forward(self, x):
                return 2 * super().forward(x)

        class Renamed(nn.Linear):
            pass

        assert layer_kind(Doubled(2, 2)) is None
        assert layer_kind(Renamed(2, 2)) is layer_kind(nn.Linear(2, 2))
        assert layer_kind(nn.SyncBatchNorm(3)) is None
        assert layer_kind(nn.Bilinear(2, 2, 2)) is None
        assert layer_kind(nn.BatchNorm3d(3)) is not None
