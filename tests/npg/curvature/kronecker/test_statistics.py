"""Scale and accumulation: what the factors may not depend on, and what they tend to."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.curvature.kronecker import KroneckerFisher
from npg.errors import ConfigurationError
from npg.likelihoods import as_distribution
from tests.npg.curvature.kronecker.helpers import (
    EXACT,
    assert_same_moments,
    block_of,
    finished,
    measured,
    moments,
)
from tests.npg.oracles import mlp


class _Everything(nn.Module):
    """Convolution, norms, an embedding with padding, a sequence, tied and untied layers."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(2, 4, 3, padding=1)
        self.group = nn.GroupNorm(2, 4)
        self.embedding = nn.Embedding(6, 4, padding_idx=0)
        self.mix = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        images, tokens = x[..., :2], x[..., 2].long()
        seen = torch.tanh(self.group(self.convolution(images.transpose(1, 2)))).transpose(1, 2)
        mixed = torch.tanh(self.mix(torch.tanh(self.mix(seen + self.embedding(tokens)))))
        return self.head(self.norm(mixed).mean(1))


def _data(n=4):
    return torch.cat([torch.randn(n, 5, 2), torch.randint(6, (n, 5, 1)).double()], -1)


LOSSES = {
    reduction: lambda z, y, reduction=reduction: F.cross_entropy(z, y, reduction=reduction)
    for reduction in ("mean", "sum")
}


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
class TestDoubledBatch:
    """Four public code bases get this scale wrong: the factors' size depends on the batch's."""

    def test_leaves_exact_factors(self, sharing):
        model, x = _Everything(), _data()
        one = measured(model, x, family="categorical", sharing=sharing)
        two = measured(model, x.repeat(2, 1, 1), family="categorical", sharing=sharing)
        assert_same_moments(one, two)

    @pytest.mark.parametrize("family", [None, "categorical"])
    @pytest.mark.parametrize("reduction", LOSSES)
    def test_leaves_empirical_factors(self, sharing, reduction, family):
        model, x, y = _Everything(), _data(), torch.randint(3, (4,))
        loss = LOSSES[reduction]
        options = {
            "kind": "empirical",
            "reduction": reduction,
            "sharing": sharing,
            "family": family,
        }
        one = measured(model, x, lambda z: loss(z, y), **options)
        two = measured(model, x.repeat(2, 1, 1), lambda z: loss(z, y.repeat(2)), **options)
        assert_same_moments(one, two)
        assert max(float(m.abs().max()) for m in moments(one)) > 0.01


@pytest.mark.parametrize("family", [None, "categorical"])
def test_mean_and_sum_give_the_same_empirical_factors(family):
    model, x, y = _Everything(), _data(), torch.randint(3, (4,))
    mean, total = (
        measured(
            model, x, lambda z, r=r: LOSSES[r](z, y), kind="empirical", reduction=r, family=family
        )
        for r in ("mean", "sum")
    )
    assert_same_moments(mean, total)


def test_positions_that_are_predicted_are_samples_of_the_empirical_factors():
    """A mean over N · T labels: only the likelihood knows that there are so many."""
    model, x, y = mlp(), torch.randn(4, 5, 3), torch.randint(3, (4, 5))

    def loss(logits):
        return F.cross_entropy(logits.flatten(0, -2), y.flatten())

    flat = measured(model, x.flatten(0, 1), loss, kind="empirical")
    assert_same_moments(flat, measured(model, x, loss, kind="empirical", family="categorical"))


def test_sampled_factors_tend_to_the_exact_ones():
    model, x = _Everything(), _data(3)
    exact = measured(model, x, family="categorical")
    sampled = KroneckerFisher(
        model, family="categorical", kind="sampled", generator=torch.Generator().manual_seed(3)
    )
    errors = []
    for draws in (10, 1000):
        for _ in range(draws):
            model(x).sum().backward()
        finished(sampled)
        pairs = zip(moments(sampled), moments(exact), strict=True)
        errors.append(sum(float((a - b).norm() / b.norm()) for a, b in pairs))
        for block in sampled.blocks:  # the next means are new ones
            block.moments, block.updates = [], 0
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] / len(moments(exact)) < 0.05


class TestAccumulation:
    @pytest.mark.parametrize("retained", [True, False])
    def test_of_two_half_batches_is_one_batch(self, retained):
        """Either order: forward, backward, forward, backward; or both forwards first."""
        model, x = _Everything(), _data(6)
        one = measured(model, x, family="categorical")
        two = KroneckerFisher(model, family="categorical", kind="exact")
        if retained:
            outputs = [model(half) for half in x.split((2, 4))]
            for output in outputs:
                output.sum().backward()
        else:
            for half in x.split((2, 4)):
                model(half).sum().backward()
        assert two.seen == 2
        assert_same_moments(one, finished(two))

    @pytest.mark.parametrize("sharing", ["expand", "reduce"])
    @pytest.mark.parametrize("family", [None, "categorical"])
    def test_of_two_empirical_halves_is_one_batch(self, family, sharing):
        model, x, y = _Everything(), _data(6), torch.randint(3, (6,))
        options = {"kind": "empirical", "family": family, "sharing": sharing}
        one = measured(model, x, lambda z: F.cross_entropy(z, y), **options)
        two = KroneckerFisher(model, **options)
        for half, labels in zip(x.split(3), y.split(3), strict=True):
            model(half)  # a pass that no loss is taken of does not count
            (F.cross_entropy(model(half), labels) / 2).backward()
        assert_same_moments(one, finished(two))

    def test_of_one_loss_over_several_passes(self):
        model, x = _Everything(), _data(6)
        one = measured(model, x, family="categorical")
        two = KroneckerFisher(model, family="categorical", kind="exact")
        first, second = (model(half) for half in x.split(3))
        (first.sum() + second.square().sum()).backward()
        assert_same_moments(one, finished(two))

    def test_of_several_backward_passes_counts_a_pass_once(self):
        model, x = mlp(), torch.randn(5, 3)
        one = measured(model, x, family="categorical")
        two = KroneckerFisher(model, family="categorical", kind="exact")
        output = model(x)
        output.sum().backward(retain_graph=True)
        output.square().sum().backward()
        assert two.seen == 1
        assert_same_moments(one, finished(two))

    def test_of_several_empirical_backward_passes_adds_gradients(self):
        model, x, y = mlp(), torch.randn(5, 3), torch.randint(3, (5,))
        one = measured(model, x, lambda z: F.cross_entropy(z, y), kind="empirical")
        two = KroneckerFisher(model, kind="empirical")
        loss = F.cross_entropy(model(x), y)
        (0.25 * loss).backward(retain_graph=True)
        (0.75 * loss).backward(retain_graph=True)
        assert_same_moments(one, finished(two))
        (0.5 * loss).backward()  # after an update: a batch of its own, a quarter of the size
        finished(two)
        for found, expected in zip(
            (b.moments[1] for b in two.blocks), (b.moments[1] for b in one.blocks), strict=True
        ):
            torch.testing.assert_close(found, expected * (1 + 0.25) / 2, **EXACT)

    def test_means_have_weight_one_over_k_until_the_decay(self):
        model = mlp()
        estimator = KroneckerFisher(model, family="categorical", kind="exact")
        values = []
        for _ in range(4):
            x = torch.randn(5, 3)
            model(x).sum().backward()
            ones = torch.cat([x, torch.ones(5, 1)], 1)
            values.append(ones.T @ ones / 5)
            estimator.update(0.7)
        # 1/1, 1/2, 1/3, then 1 - 0.7: means of one, two, three, then an exponential average.
        expected = 0.7 * sum(values[:3]) / 3 + 0.3 * values[3]
        torch.testing.assert_close(estimator.blocks[0].moments[0], expected, **EXACT)


class TestMasks:
    def _observed(self, model, x, mask=None, **options):
        estimator = KroneckerFisher(model, kind="exact", **options)
        output = model(x)
        estimator.observe(as_distribution(output, "categorical"), mask)
        return finished(estimator)

    @pytest.mark.parametrize("sharing", ["expand", "reduce"])
    def test_samples_that_do_not_count_might_not_be_there(self, sharing):
        model, x = _Everything(), _data(6)
        mask = torch.tensor([True, False, True, True, False, True])
        masked = self._observed(model, x, mask, sharing=sharing)
        assert_same_moments(masked, self._observed(model, x[mask], sharing=sharing))

    def test_positions_that_do_not_count_might_not_be_there(self):
        model, x = mlp(), torch.randn(4, 5, 3)
        mask = torch.rand(4, 5) > 0.4
        masked = self._observed(model, x, mask)
        assert_same_moments(masked, self._observed(model, x[mask]))

    def test_and_so_in_flattened_positions(self):
        model, x = nn.Sequential(mlp(), nn.Flatten(0, 1)), torch.randn(4, 5, 3)
        mask = torch.rand(4, 5) > 0.4
        masked = self._observed(model, x, mask.flatten())
        assert_same_moments(masked, self._observed(model[0], x[mask]))

    def test_a_mask_without_samples_measures_nothing(self):
        model, x = mlp(), torch.randn(4, 3)
        estimator = KroneckerFisher(model, kind="exact")
        estimator.observe(as_distribution(model(x), "categorical"), torch.zeros(4, dtype=bool))
        assert estimator.seen == 0
        assert not any(block.sums for block in estimator.blocks)
        assert bool(estimator.finite())

    @pytest.mark.parametrize("shape", [(4, 1), (5,), (1,)])
    def test_a_mask_of_another_shape_is_refused(self, shape):
        model, x = mlp(), torch.randn(4, 3)
        estimator = KroneckerFisher(model)
        with pytest.raises(ConfigurationError, match=r"one entry per sample, shape \(4,\)"):
            estimator.observe(as_distribution(model(x), "categorical"), torch.ones(shape))


class TestTied:
    def test_one_layer_used_twice_has_both_uses_as_positions(self):
        model = nn.Linear(3, 3)
        x = torch.randn(4, 3)

        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = model

            def forward(self, x):
                return self.layer(self.layer(x))

        estimator = measured(Twice(), x, family="normal")
        inputs, signals = block_of(estimator, model.weight).moments
        first = torch.cat([x, torch.ones(4, 1)], 1)
        second = torch.cat([model(x), torch.ones(4, 1)], 1)
        expected = (first.T @ first + second.T @ second) / 8
        torch.testing.assert_close(inputs, expected.detach(), **EXACT)
        # Unit columns reach the upper use as they are, the lower one as rows of W.
        torch.testing.assert_close(
            signals, (torch.eye(3) + model.weight.T @ model.weight).detach(), **EXACT
        )

    def test_one_parameter_in_two_layers_is_one_block(self):
        one, two = nn.Linear(3, 3), nn.Linear(3, 3)
        two.weight, two.bias = one.weight, one.bias
        model = nn.Sequential(one, nn.Tanh(), two)
        same = nn.Sequential(one, nn.Tanh(), one)
        x = torch.randn(5, 3)
        first = measured(model, x, family="categorical")
        assert len(first.blocks) == 1
        assert_same_moments(first, measured(same, x, family="categorical"))

    def test_a_weight_with_two_biases_is_free(self):
        one, two = nn.Linear(3, 3), nn.Linear(3, 3)
        two.weight = one.weight
        model = nn.Sequential(one, nn.Tanh(), two)
        estimator = measured(model, torch.randn(5, 3), family="categorical")
        assert [type(block).__name__ for block in estimator.blocks] == ["FreeBlock"] * 3
        assert all(block.moments for block in estimator.blocks)

    def test_an_embedding_tied_with_the_output_is_free(self):
        class Language(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Embedding(7, 4)
                self.body = nn.Linear(4, 4)
                self.head = nn.Linear(4, 7, bias=False)
                self.head.weight = self.embedding.weight

            def forward(self, tokens):
                return self.head(torch.tanh(self.body(self.embedding(tokens))))

        model = Language()
        estimator = measured(model, torch.randint(7, (3, 5)), family="categorical")
        names = [type(block).__name__ for block in estimator.blocks]
        assert names == ["MatrixBlock", "FreeBlock"]
        assert all(block.moments for block in estimator.blocks)

    def test_batches_of_different_sizes_need_expand(self):
        layer, head = nn.Linear(3, 3), nn.Linear(3, 2)

        class Uneven(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.head = layer, head

            def forward(self, x):
                return self.head(self.layer(x) + self.layer(x[:1]))

        x = torch.randn(4, 3)
        inputs = block_of(measured(Uneven(), x, family="normal"), layer.weight).moments[0]
        rows = torch.cat([torch.cat([x, x[:1]]), torch.ones(5, 1)], 1)
        torch.testing.assert_close(inputs, rows.T @ rows / 5, **EXACT)
        with pytest.raises(ConfigurationError, match='sharing="expand"'):
            measured(Uneven(), x, family="normal", sharing="reduce")
