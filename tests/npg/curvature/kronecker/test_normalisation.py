"""Per-sample gradients of scales and shifts against one backward pass per sample."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.curvature.kronecker import KroneckerFisher
from npg.curvature.kronecker.normalisation import NormalisationLayer, normalised
from tests.npg.curvature.kronecker.helpers import block_of, categorical_block, measured


def _warm(layer: nn.Module, *shape: int) -> nn.Module:
    layer(torch.randn(*shape) * 2 + 1)
    return layer


LAYERS = {
    "layer norm": (lambda: nn.LayerNorm(4), (3, 4)),
    "layer norm on a sequence": (lambda: nn.LayerNorm(4), (3, 5, 4)),
    "layer norm over two dimensions": (lambda: nn.LayerNorm((2, 3)), (3, 4, 2, 3)),
    "layer norm on a vector": (lambda: nn.LayerNorm(4), (4,)),
    "layer norm without bias": (lambda: nn.LayerNorm(4, bias=False), (3, 5, 4)),
    "rms norm": (lambda: nn.RMSNorm(4, eps=0.1), (3, 5, 4)),
    "rms norm with its own eps": (lambda: nn.RMSNorm((2, 4)), (3, 2, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 4, eps=0.1), (3, 4, 2, 2)),
    "group norm on features": (lambda: nn.GroupNorm(2, 4), (3, 4)),
    "batch norm": (lambda: nn.BatchNorm1d(4, eps=0.1), (5, 4)),
    "batch norm on a sequence": (lambda: nn.BatchNorm1d(4), (5, 4, 3)),
    "batch norm on images": (lambda: nn.BatchNorm2d(4), (5, 4, 2, 3)),
    "batch norm on volumes": (lambda: nn.BatchNorm3d(2), (3, 2, 2, 2, 2)),
    "batch norm without statistics": (
        lambda: nn.BatchNorm1d(4, track_running_stats=False).eval(),
        (5, 4),
    ),
    "evaluated batch norm": (lambda: _warm(nn.BatchNorm2d(4), 5, 4, 2, 3).eval(), (5, 4, 2, 3)),
}


def _per_sample(layer, x, cotangent):
    """Gradients [N, P] of ⟨y_n, cotangent_n⟩, one backward pass each."""
    trained = [p for p in layer.parameters() if p.requires_grad]
    y = layer(x)
    batched = x.ndim > 1
    rows = []
    for n in range(len(x) if batched else 1):
        own = torch.zeros_like(y)
        index = n if batched else ...
        own[index] = cotangent[index]
        gradients = torch.autograd.grad(y, trained, own, retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


class TestPerSampleGradients:
    @pytest.mark.parametrize("frozen", [None, "weight", "bias"])
    @pytest.mark.parametrize("name", LAYERS)
    def test_are_those_of_one_pass_per_sample(self, name, frozen):
        make, shape = LAYERS[name]
        layer = make()
        if frozen and getattr(layer, "bias", None) is None:
            pytest.skip("it has one parameter")
        for p in layer.parameters():
            nn.init.normal_(p)
        if frozen:
            getattr(layer, frozen).requires_grad_(False)
        named = {n: p if p is not None and p.requires_grad else None
                 for n, p in layer._parameters.items()}  # fmt: skip
        ours = NormalisationLayer(layer, named["weight"], named.get("bias"))
        x = torch.randn(shape)
        cotangent = torch.randn_like(layer(x))
        expected = _per_sample(layer, x, cotangent)
        found = ours.per_sample(layer, x, cotangent)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)

    def test_running_statistics_are_left_alone(self):
        layer = _warm(nn.BatchNorm1d(4), 6, 4)
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        normalised(layer, torch.randn(5, 4))
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


class _Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.below, self.norm, self.above = nn.Linear(3, 4), norm, nn.Linear(4, 3)

    def forward(self, x):
        return self.above(torch.tanh(self.norm(self.below(x))))


class TestBlocks:
    @pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
    def test_equal_the_fisher_of_torch_func(self, norm):
        model, x = _Normed(norm(4)), torch.randn(6, 3)
        estimator = measured(model, x, family="categorical")
        block = block_of(estimator, model.norm.weight)
        torch.testing.assert_close(
            block.moments[0], categorical_block(model, x, block), rtol=1e-9, atol=1e-12
        )

    def test_of_a_norm_used_twice_add_up_before_they_are_squared(self):
        class Twice(_Normed):
            def forward(self, x):
                return self.above(torch.tanh(self.norm(self.norm(self.below(x)).square())))

        model, x = Twice(nn.LayerNorm(4)), torch.randn(6, 3)
        block = block_of(measured(model, x, family="categorical"), model.norm.weight)
        torch.testing.assert_close(
            block.moments[0], categorical_block(model, x, block), rtol=1e-9, atol=1e-12
        )

    def test_of_a_norm_used_on_batches_of_different_sizes(self):
        class Uneven(_Normed):
            def forward(self, x):
                below = self.below(x)
                return self.above(torch.cat([self.norm(below[:4]), self.norm(below[4:])]))

        model, x = Uneven(nn.LayerNorm(4)), torch.randn(6, 3)
        block = block_of(measured(model, x, family="categorical"), model.norm.weight)
        expected = categorical_block(model, x, block)
        torch.testing.assert_close(block.moments[0], expected, rtol=1e-9, atol=1e-12)

    def test_of_evaluated_batch_norm_inside_a_model_that_trains(self):
        model, x = _Normed(_warm(nn.BatchNorm1d(4), 9, 4)), torch.randn(6, 3)
        model.norm.eval()
        assert model.training
        estimator = measured(model, x, family="categorical")
        block = block_of(estimator, model.norm.weight)
        torch.testing.assert_close(
            block.moments[0], categorical_block(model, x, block), rtol=1e-9, atol=1e-12
        )

    def test_of_many_parameters_are_diagonals(self):
        model = nn.Sequential(nn.Linear(3, 200), nn.LayerNorm(200), nn.Linear(200, 2))
        x = torch.randn(5, 3)
        estimator = measured(model, x, family="categorical")
        block = block_of(estimator, model[1].weight)
        expected = categorical_block(model, x, block).diagonal()
        torch.testing.assert_close(block.moments[0], expected, rtol=1e-9, atol=1e-12)

    def test_samples_that_meet_in_batch_norm_have_no_cross_terms(self):
        """Signs make the factors below it unbiased: the mean over many is the sum over samples m
        of Σ_n δ_n F_m δ_nᵀ, with δ_n the gradients of m's logits at entry n."""
        model, x = _Normed(nn.BatchNorm1d(4)), torch.randn(4, 3)
        below = model.below(x)
        logits = model.above(torch.tanh(model.norm(below)))
        p = logits.softmax(-1).detach()
        expected = torch.zeros(4, 4)
        for m in range(4):
            fisher = p[m].diag() - torch.outer(p[m], p[m])
            rows = torch.stack(
                [torch.autograd.grad(logits[m, k], below, retain_graph=True)[0] for k in range(3)]
            )
            assert rows.abs().amax((0, 2)).min() > 1e-6  # it reaches every entry
            expected += torch.einsum("kni,kl,lnj->ij", rows, fisher, rows) / 4
        estimator = KroneckerFisher(
            model, family="categorical", kind="exact", generator=torch.Generator().manual_seed(0)
        )
        for _ in range(600):
            model(x).sum().backward()
        estimator.update(0.95)
        found = block_of(estimator, model.below.weight).moments[1]
        assert (found - expected).norm() < 0.05 * expected.norm()


def test_half_precision_moments_are_single(recwarn):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).bfloat16()
    x = torch.randn(4, 3, dtype=torch.bfloat16)
    estimator = measured(
        model, x, lambda y: F.cross_entropy(y.float(), torch.zeros(4, dtype=torch.long)),
        kind="empirical",
    )  # fmt: skip
    assert {m.dtype for b in estimator.blocks for m in b.moments} == {torch.float32}
