"""Where K-FAC is exact it equals the dense matrix; elsewhere, curvlinops' factors."""

import pytest
import torch
from curvlinops import KFACLinearOperator
from torch import nn
from torch.nn import functional as F

from npg.curvature import Fisher
from npg.likelihoods import as_distribution
from tests.npg.curvature.kronecker.helpers import (
    EXACT,
    block_of,
    categorical_block,
    dense,
    measured,
    squared_error_block,
)
from tests.npg.oracles import mlp, trained


class _Pooled(nn.Module):
    """Mean over positions of linear layers on each of them: reduce is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def forward(self, x):
        return self.body(x).mean(1)


def _averaged_convolution(padding: int = 0) -> nn.Module:
    """Linear, all kernels on the image and an average: every position's signal is the same."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=padding), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )


class TestDeepLinear:
    @pytest.mark.parametrize("bias", [True, False])
    def test_every_block_is_that_of_the_squared_error(self, bias):
        model = mlp(nn.Identity, bias=bias)
        x = torch.randn(7, 3)
        estimator = measured(model, x, family="normal")
        assert len(estimator.blocks) == 3
        for block in estimator.blocks:
            torch.testing.assert_close(dense(block), squared_error_block(model, x, block), **EXACT)

    def test_expand_is_exact_where_positions_are_samples(self):
        model, x = mlp(nn.Identity), torch.randn(4, 5, 3)

        def family(output):
            return as_distribution(output.flatten(0, 1), "normal")

        estimator = measured(model, x, family=family, sharing="expand")
        for block in estimator.blocks:
            expected = squared_error_block(model, x.flatten(0, 1), block)
            torch.testing.assert_close(dense(block), expected, **EXACT)

    def test_reduce_is_exact_where_positions_are_averaged(self):
        model, x = _Pooled(), torch.randn(6, 5, 3)
        estimator = measured(model, x, family="normal", sharing="reduce")
        for block in estimator.blocks:
            torch.testing.assert_close(dense(block), squared_error_block(model, x, block), **EXACT)
        expand = measured(model, x, family="normal", sharing="expand")
        assert not torch.allclose(dense(expand.blocks[0]), dense(estimator.blocks[0]))

    @pytest.mark.parametrize("padding", [0, 1])
    def test_reduce_is_exact_for_a_convolution_that_is_averaged(self, padding):
        model, x = _averaged_convolution(padding), torch.randn(5, 2, 4, 5)
        estimator = measured(model, x, family="normal", sharing="reduce")
        for block in estimator.blocks:
            torch.testing.assert_close(dense(block), squared_error_block(model, x, block), **EXACT)

    def test_a_convolution_in_groups_has_blocks_of_its_groups(self):
        model = nn.Sequential(
            nn.Conv1d(4, 6, 2, groups=2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 6)
        )
        with torch.no_grad():  # groups do not meet above, so that their cross block is zero
            model[3].weight[:3, 3:] = 0
            model[3].weight[3:, :3] = 0
        x = torch.randn(5, 4, 6)
        estimator = measured(model, x, family="normal", sharing="reduce")
        block = block_of(estimator, model[0].weight)
        torch.testing.assert_close(dense(block), squared_error_block(model, x, block), **EXACT)

    def test_an_embedding_is_a_linear_layer_on_one_hot_rows(self):
        model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
        x = torch.tensor([0, 3, 3, 1, 0, 0])
        estimator = measured(model, x, family="normal")
        block = block_of(estimator, model[0].weight)
        torch.testing.assert_close(dense(block), squared_error_block(model, x, block), **EXACT)

    def test_padding_indices_do_not_thin_out_an_embedding(self):
        """Two indices of five are padding: the other three see the same signals."""
        model = nn.Sequential(nn.Embedding(5, 3, padding_idx=2), nn.Flatten(), nn.Linear(15, 2))
        with torch.no_grad():
            model[2].weight.copy_(torch.randn(2, 3).repeat(1, 5))
        x = torch.tensor([[0, 2, 3, 2, 1]]).repeat(4, 1)
        block = block_of(measured(model, x, family="normal"), model[0].weight)
        inputs, signals = block.moments
        # Frequencies among 12 indices that count: 4 each of 0, 1, 3.
        torch.testing.assert_close(inputs, torch.tensor([1, 1, 0, 1, 0]) / 3, **EXACT)
        per_position = model[2].weight[:, :3]
        torch.testing.assert_close(signals, 3 * per_position.T @ per_position, **EXACT)


class TestOneSample:
    @pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
    def test_the_block_is_the_fisher(self, activation):
        model, x = mlp(activation), torch.randn(1, 3)
        estimator = measured(model, x, family="categorical")
        for block in estimator.blocks:
            torch.testing.assert_close(dense(block), categorical_block(model, x, block), **EXACT)

    def test_and_that_of_our_dense_fisher(self):
        model, x = mlp(), torch.randn(1, 3)
        estimator = measured(model, x, family="bernoulli")
        for block in estimator.blocks:
            fisher = Fisher(block.parameters, as_distribution(model(x), "bernoulli")).to_dense()
            weight, bias = block.parameters
            # Flat vectors count the weight, then the bias; matrices have it as last column.
            order = torch.cat(
                [
                    torch.cat(
                        [torch.arange(weight.shape[1]) + i * weight.shape[1],
                         torch.tensor([weight.numel() + i])]
                    )
                    for i in range(len(bias))
                ]
            )  # fmt: skip
            torch.testing.assert_close(dense(block), fisher[order][:, order], **EXACT)


def _convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(3, 4, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


LOSSES = {
    "mse": (nn.MSELoss, lambda n: torch.randn(n, 3)),
    "categorical": (nn.CrossEntropyLoss, lambda n: torch.randint(3, (n,))),
    "bernoulli": (nn.BCEWithLogitsLoss, lambda n: torch.rand(n, 3).round()),
}


def _theirs(model, x, y, loss, fisher_type, sharing, **options):
    operator = KFACLinearOperator(
        model,
        loss,
        trained(model),
        [(x, y)],
        fisher_type=fisher_type,
        kfac_approx=sharing,
        separate_weight_and_bias=False,
        check_deterministic=False,
        **options,
    )
    operator.compute_kronecker_factors()
    return operator._input_covariances, operator._gradient_covariances


def _their_order(layer):
    """Their columns are those of the flat weight, then the bias; ours as the layer puts them."""
    per_row = layer.weight[0].numel()
    columns = torch.arange(per_row).reshape(1, *layer.weight.shape[1:]).expand_as(layer.weight)
    bias = [] if layer.bias is None else [torch.full(layer.bias.shape, per_row)]
    return layer.matrix([columns, *bias])[0]


def _assert_factors(model, estimator, theirs, **tolerance):
    names = {id(p): name.rpartition(".")[0] for name, p in model.named_parameters()}
    for block in estimator.blocks:
        name = names[id(block.parameters[0])]
        inputs, signals = block.moments
        order = _their_order(block.layer)
        torch.testing.assert_close(inputs, theirs[0][name][order][:, order], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(signals, theirs[1][name], **tolerance)


CURVLINOPS = {"rtol": 1e-6, "atol": 1e-9}


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("make", [mlp, _convolutional])
class TestCurvlinops:
    def _data(self, make, n=6):
        return torch.randn((n, 3) if make is mlp else (n, 2, 6, 4))

    @pytest.mark.parametrize("name", LOSSES)
    def test_exact_factors_are_type_2(self, make, sharing, name):
        model, x = make(), self._data(make)
        loss, labels = LOSSES[name]
        y = labels(len(x))
        estimator = measured(model, x, family=name, sharing=sharing)
        theirs = _theirs(model, x, y, loss(), "type-2", sharing)
        if name == "bernoulli":  # their loss is a mean over the three outputs, ours a sum
            theirs = (theirs[0], {layer: 3 * g for layer, g in theirs[1].items()})
        _assert_factors(model, estimator, theirs, **CURVLINOPS)

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_empirical_factors(self, make, sharing, reduction):
        model, x = make(), self._data(make)
        y = torch.randint(3, (len(x),))
        loss = nn.CrossEntropyLoss(reduction=reduction)
        estimator = measured(
            model,
            x,
            lambda z: F.cross_entropy(z, y, reduction=reduction),
            kind="empirical",
            reduction=reduction,
            sharing=sharing,
        )
        theirs = _theirs(model, x, y, loss, "empirical", sharing)
        scale = 1 if reduction == "mean" else 1 / len(x)
        theirs = (theirs[0], {name: g * scale for name, g in theirs[1].items()})
        _assert_factors(model, estimator, theirs, **CURVLINOPS)

    def test_sampled_factors_are_as_their_monte_carlo(self, make, sharing):
        """Both tend to the same: 2,000 labels for each of two inputs, within 12 %."""
        model = make()
        x = self._data(make, 2).repeat(2000, *([1] * (1 if make is mlp else 3)))
        y = torch.randint(3, (len(x),))
        estimator = measured(
            model,
            x,
            family="categorical",
            kind="sampled",
            sharing=sharing,
            generator=torch.Generator().manual_seed(1),
        )
        theirs = _theirs(model, x, y, nn.CrossEntropyLoss(), "mc", sharing)
        largest = max(g.abs().max() for g in theirs[1].values())
        _assert_factors(model, estimator, theirs, rtol=0.12, atol=0.05 * float(largest))
