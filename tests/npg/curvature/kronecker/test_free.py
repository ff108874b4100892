"""Parameters outside layers: a policy's log σ, a positional embedding, a recurrent layer."""

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.nn import functional as F

from npg.curvature import Fisher
from npg.curvature.kronecker import FreeBlock, KroneckerFisher
from npg.curvature.kronecker import estimator as estimator_module
from npg.curvature.kronecker.capture import back_propagate
from npg.likelihoods import as_distribution
from tests.npg.curvature.kronecker.helpers import EXACT, block_of, finished, measured
from tests.npg.oracles import Recurrent, mlp


class Policy(nn.Module):
    def __init__(self, actions: int = 3) -> None:
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, actions))
        self.log_std = nn.Parameter(0.3 * torch.randn(actions))

    def forward(self, x):
        mean = self.mean(x)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)


class TestLogScale:
    @pytest.mark.parametrize("actions", [3, 7])
    @pytest.mark.parametrize("kind", ["exact", "sampled"])
    def test_has_two_per_coordinate(self, kind, actions):
        policy = Policy(actions)
        estimator = KroneckerFisher(policy, kind=kind)
        estimator.observe(policy(torch.randn(8, 3)))
        block = block_of(finished(estimator), policy.log_std)
        torch.testing.assert_close(block.moments[0], 2 * torch.eye(actions), **EXACT)

    def test_has_two_with_masks_and_batches_of_different_sizes(self):
        policy = Policy()
        estimator = KroneckerFisher(policy)
        mask = torch.tensor([True, False, True, True, False])
        estimator.observe(policy(torch.randn(5, 3)), mask)
        estimator.observe(policy(torch.randn(2, 3)))
        block = block_of(estimator, policy.log_std)
        assert block.counts == [5]  # 3 and 2 samples
        finished(estimator)
        torch.testing.assert_close(block.moments[0], 2 * torch.eye(3), **EXACT)

    def test_that_depends_on_the_state_is_in_the_layers(self):
        class Wide(nn.Module):
            def __init__(self):
                super().__init__()
                self.both = nn.Linear(3, 4)

            def forward(self, x):
                mean, log_std = self.both(x).chunk(2, -1)
                return Independent(Normal(mean, log_std.exp()), 1)

        policy, x = Wide(), torch.randn(6, 3)
        estimator = KroneckerFisher(policy, kind="exact")
        prediction = policy(x)
        estimator.observe(prediction)
        (block,) = finished(estimator).blocks
        # In (μ, log σ) the Fisher is (1/σ², 2).
        variance = prediction.base_dist.scale.detach().square()
        expected = torch.cat([(1 / variance).mean(0), torch.full((2,), 2.0)]).diag()
        torch.testing.assert_close(block.moments[1], expected, **EXACT)

    def test_exact_signals_are_the_precision(self, monkeypatch):
        """Columns of σ, which no layer computes, cost no passes and change nothing."""
        policy, x = Policy(), torch.randn(6, 3)
        passes = []

        def counted(*arguments):
            passes.append(arguments)
            return back_propagate(*arguments)

        monkeypatch.setattr(estimator_module, "back_propagate", counted)
        estimator = KroneckerFisher(policy, kind="exact")
        estimator.observe(policy(x))
        assert len(passes) == 3
        signals = block_of(finished(estimator), policy.mean[2].weight).moments[1]
        torch.testing.assert_close(signals, (-2 * policy.log_std.detach()).exp().diag(), **EXACT)


class _Positional(nn.Module):
    def __init__(self, positions: int = 6) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(positions, 8))
        self.body = nn.Linear(8, 3)

    def forward(self, x):
        return self.body(torch.tanh(x + self.position).mean(1))


class TestEstimates:
    # A block of 16 is whole, one of 48 a diagonal; one of 320 is too large for exact products.
    @pytest.mark.parametrize(("kind", "positions"), [("sampled", 2), ("sampled", 6), ("exact", 40)])
    def test_of_a_positional_embedding_are_unbiased(self, kind, positions):
        model, x = _Positional(positions), torch.randn(4, positions, 8)
        prediction = as_distribution(model(x), "categorical")
        fisher = Fisher([model.position], prediction).to_dense()
        expected = fisher if positions == 2 else fisher.diagonal()
        generator = torch.Generator().manual_seed(0)
        estimator = KroneckerFisher(model, family="categorical", kind=kind, generator=generator)
        for _ in range(800 if kind == "sampled" else 400):
            model(x).sum().backward()
        block = block_of(finished(estimator), model.position)
        assert isinstance(block, FreeBlock)
        assert block.whole == (positions == 2)
        found = block.moments[0]
        assert found.shape == expected.shape
        error = (found - expected).norm() / expected.norm()
        assert error < 0.2

    @pytest.mark.parametrize("positions", [2, 6])
    def test_of_the_exact_kind_are_exact(self, positions):
        model, x = _Positional(positions), torch.randn(4, positions, 8)
        fisher = Fisher([model.position], as_distribution(model(x), "categorical")).to_dense()
        expected = fisher if positions == 2 else fisher.diagonal()
        found = block_of(measured(model, x, family="categorical", kind="exact"), model.position)
        torch.testing.assert_close(found.moments[0], expected, **EXACT)

    def test_of_a_few_numbers_are_exact(self):
        class Shifted(nn.Module):
            def __init__(self):
                super().__init__()
                self.shift = nn.Parameter(torch.randn(3))
                self.body = mlp()

            def forward(self, x):
                return self.body(torch.sin(x + self.shift))

        model, x = Shifted(), torch.randn(5, 3)
        expected = Fisher([model.shift], as_distribution(model(x), "bernoulli")).to_dense()
        found = block_of(measured(model, x, family="bernoulli", kind="sampled"), model.shift)
        torch.testing.assert_close(found.moments[0], expected, **EXACT)

    def test_of_a_few_numbers_below_attention_are_estimated(self):
        """Fused attention cannot be differentiated twice: that is no reason to fail."""

        class Shifted(nn.Module):
            def __init__(self):
                super().__init__()
                self.shift = nn.Parameter(torch.randn(2))
                self.head = nn.Linear(2, 3)

            def forward(self, x):
                x = torch.sin(x + self.shift).unsqueeze(1)
                return self.head(F.scaled_dot_product_attention(x, x, x).mean((1, 2)))

        model = Shifted()
        estimator = measured(model, torch.randn(5, 4, 2), family="categorical")
        assert block_of(estimator, model.shift).moments[0].shape == (2, 2)

    def test_of_a_recurrent_layer(self):
        model, x = Recurrent(), torch.randn(4, 3, 2)
        estimator = measured(model, x, family="categorical", kind="sampled")
        assert all(block.moments for block in estimator.blocks)

    def test_of_a_model_without_layers(self):
        class Bare(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.randn(3, 3))

            def forward(self, x):
                return x @ self.weight

        model = Bare()
        estimator = measured(model, torch.randn(4, 3), family="categorical", kind="sampled")
        assert estimator.blocks[0].moments[0].shape == (9, 9)

    def test_of_many_numbers_in_a_chain_cost_no_product_each(self, monkeypatch):
        """A bare weight of a chain: exact products are cheap one by one, not by the hundred."""

        class Bare(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.randn(20, 20))

            def forward(self, x):
                return F.linear(x, self.weight)

        def refuse(matrix):
            raise AssertionError(f"{matrix.shape[0]} products")

        monkeypatch.setattr(Fisher, "diagonal", refuse)
        estimator = measured(Bare(), torch.randn(4, 20), family="categorical", kind="exact")
        assert estimator.blocks[0].moments[0].shape == (400,)
