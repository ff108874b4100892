"""nn.MultiheadAttention: the same numbers with its projections set out, and their factors."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from npg.curvature.kronecker import FreeBlock, KroneckerFisher, MatrixBlock
from npg.curvature.kronecker.attention import AttentionForward, explicit_attention, projections
from tests.npg.curvature.kronecker.helpers import (
    EXACT,
    assert_same_moments,
    block_of,
    cleared,
    dense,
    finished,
    measured,
)
from tests.pairs import pairs

CLOSE = {"rtol": 1e-9, "atol": 1e-11}

LAYERS = {
    "plain": {},
    "without bias": {"bias": False},
    "other keys and values": {"kdim": 3, "vdim": 5},
    "other keys without bias": {"kdim": 3, "bias": False},
    "dropout": {"dropout": 0.4},
}
N, L, S, E, HEADS = 3, 4, 5, 6, 2


def _masks(cross: bool, kind: str, batched: bool) -> dict[str, object]:
    sources = S if cross else L
    causal = torch.ones(L, sources).tril().bool().logical_not()
    padding = torch.zeros(N, sources, dtype=torch.bool)
    padding[0, -1] = padding[1, -2:] = True
    padding = padding if batched else padding[0]
    per_head = torch.randn(N * HEADS if batched else HEADS, L, sources)
    return {
        "none": {},
        "causal": {"attn_mask": causal},
        "causal by name": {"attn_mask": causal, "is_causal": True},
        "added": {"attn_mask": torch.randn(L, sources)},
        "per head": {"attn_mask": per_head},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": causal, "key_padding_mask": padding},
        "both by name": {"attn_mask": causal, "key_padding_mask": padding, "is_causal": True},
        "both added": {
            "attn_mask": per_head,
            "key_padding_mask": torch.zeros(padding.shape).masked_fill(padding, -float("inf")),
        },
    }[kind]


MASKS = (
    "none",
    "causal",
    "causal by name",
    "added",
    "per head",
    "padding",
    "both",
    "both by name",
    "both added",
)


class TestForward:
    @pytest.mark.parametrize(
        *pairs(
            name=tuple(LAYERS),
            masks=MASKS,
            weights={"none": (False, True), "mean": (True, True), "each": (True, False)},
        )
    )
    def test_is_that_of_torch(self, name, masks, weights):
        options = LAYERS[name]
        layouts = itertools.product([True, False], ["first", "second", "none"])
        for cross, batch in layouts:
            if not cross and "kdim" in options:
                continue
            layer = nn.MultiheadAttention(E, HEADS, batch_first=batch == "first", **options)
            if layer.in_proj_bias is not None:
                nn.init.normal_(layer.in_proj_bias)
                nn.init.normal_(layer.out_proj.bias)
            query = torch.randn(N, L, E)
            key = torch.randn(N, S, options.get("kdim", E)) if cross else query
            value = torch.randn(N, S, options.get("vdim", E)) if cross else query
            inputs = [
                {"first": x, "second": x.transpose(0, 1), "none": x[0]}[batch]
                for x in (query, key, value)
            ]
            if not cross:
                inputs = [inputs[0]] * 3
            call = {
                "need_weights": weights[0],
                "average_attn_weights": weights[1],
                **_masks(cross, masks, batch != "none"),
            }
            torch.manual_seed(1)  # dropout
            expected, expected_weights = layer(*inputs, **call)
            expected_gradients = torch.autograd.grad(
                expected.square().sum(), list(layer.parameters())
            )
            noted = []
            torch.manual_seed(1)
            found, found_weights = explicit_attention(
                layer, lambda *args, noted=noted: noted.append(args[3]), *inputs, **call
            )
            assert noted == list(projections(layer))
            torch.testing.assert_close(found, expected, **CLOSE)
            assert (found_weights is None) == (expected_weights is None)
            if found_weights is not None:
                torch.testing.assert_close(found_weights, expected_weights, **CLOSE)
            gradients = torch.autograd.grad(found.square().sum(), list(layer.parameters()))
            for ours, theirs in zip(gradients, expected_gradients, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)

    def test_is_torchs_own_where_nobody_listens(self):
        layer = nn.MultiheadAttention(E, HEADS, batch_first=True)
        estimator = KroneckerFisher(layer)
        x = torch.randn(N, L, E)
        for _ in range(2):
            with torch.no_grad():
                assert torch.equal(
                    layer(x, x, x)[0], nn.MultiheadAttention.forward(layer, x, x, x)[0]
                )
            layer.eval()
        estimator.capture.active = False
        layer.train()(x, x, x)
        assert not estimator.capture.take().noted

    def test_refuses_what_torch_refuses(self):
        layer = nn.MultiheadAttention(E, HEADS, batch_first=True)
        estimator = KroneckerFisher(layer)
        x = torch.randn(N, L, E)
        with pytest.raises(RuntimeError, match="Need attn_mask"):
            layer(x, x, x, is_causal=True)
        assert not estimator.capture.take().noted

    @pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
    def test_with_further_keys_is_left_alone_and_free(self, options):
        layer = nn.MultiheadAttention(E, HEADS, batch_first=True, **options)
        model = _Pooled(layer)
        estimator = measured(model, torch.randn(N, L, E), family="categorical", kind="sampled")
        assert "forward" not in layer.__dict__
        for p in layer.parameters():
            block = block_of(estimator, p)
            assert isinstance(block, FreeBlock)
            assert block.moments


class _Pooled(nn.Module):
    """Attention (self or to other inputs), then a mean and a head."""

    def __init__(self, attention: nn.MultiheadAttention, cross: bool = False) -> None:
        super().__init__()
        self.attention = attention
        self.head = nn.Linear(E, 3)
        self.cross = cross
        self.need_weights = False

    def forward(self, x):
        query = x[:, :2] if self.cross else x
        keys = x[..., : self.attention.kdim] if self.cross else x
        values = x[..., : self.attention.vdim] if self.cross else x
        if not self.attention.batch_first:
            query, keys, values = (v.transpose(0, 1) for v in (query, keys, values))
            if not self.cross:
                query = keys = values
        out = self.attention(query, keys, values, need_weights=self.need_weights)[0]
        return self.head(out.mean(1 if self.attention.batch_first else 0))


def _rows_and_signals(model, x, y):
    """By an empirical step: sums over N and R of δ aᵀ for each block, and its gradient."""
    estimator = KroneckerFisher(model, kind="empirical", reduction="sum", keep_rows=True)
    F.cross_entropy(cleared(model)(x), y, reduction="sum").backward()
    estimator.finish()
    found = []
    for block in estimator.blocks:
        if isinstance(block, MatrixBlock):
            ((rows, (signals,), _),) = block.rows
            grouped = rows.ndim == 4
            product = torch.einsum("nrgo,nrgd->god" if grouped else "nro,nrd->od", signals, rows)
            found.append((block, product, block.layer.matrix([p.grad for p in block.parameters])))
    return found


class TestGradients:
    @pytest.mark.parametrize("cross", [False, True])
    @pytest.mark.parametrize("batch_first", [False, True])
    @pytest.mark.parametrize("name", ["plain", "without bias", "other keys and values"])
    def test_are_the_products_of_signals_and_rows(self, name, batch_first, cross):
        options = LAYERS[name]
        if "kdim" in options and not cross:
            pytest.skip("self-attention has keys of its own size")
        model = _Pooled(nn.MultiheadAttention(E, HEADS, batch_first=batch_first, **options), cross)
        found = _rows_and_signals(model, torch.randn(N, L, E), torch.randint(3, (N,)))
        assert len(found) == (5 if "kdim" in options else 3)
        for block, product, matrix in found:
            torch.testing.assert_close(product, matrix, **CLOSE)
            for p, back in zip(block.parameters, block.layer.gradients(matrix), strict=True):
                assert torch.equal(back, p.grad)

    @pytest.mark.parametrize("frozen", ["in_proj_weight", "in_proj_bias"])
    def test_of_the_part_that_is_trained(self, frozen):
        model = _Pooled(nn.MultiheadAttention(E, HEADS, batch_first=True))
        getattr(model.attention, frozen).requires_grad_(False)
        found = _rows_and_signals(model, torch.randn(N, L, E), torch.randint(3, (N,)))
        for _, product, matrix in found:
            torch.testing.assert_close(product, matrix, **CLOSE)

    @pytest.mark.parametrize("options", [{}, {"kdim": 3, "vdim": 5}])
    @pytest.mark.parametrize("part", ["in", "out", "q"])
    def test_beside_frozen_projections(self, part, options):
        attention = nn.MultiheadAttention(E, HEADS, batch_first=True, **options)
        for name, p in attention.named_parameters():
            p.requires_grad_(not name.startswith(part) and (part != "in" or "_proj_w" not in name))
        attention.out_proj.requires_grad_(part != "out")
        model = _Pooled(attention, cross=True)
        estimator = measured(model, torch.randn(N, L, E), family="categorical")
        assert all(block.moments for block in estimator.blocks)
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        assert trained == {id(p) for block in estimator.blocks for p in block.parameters}
        found = _rows_and_signals(model, torch.randn(N, L, E), torch.randint(3, (N,)))
        for _, product, matrix in found:
            torch.testing.assert_close(product, matrix, **CLOSE)

    def test_of_a_transformer_encoder(self):
        layer = nn.TransformerEncoderLayer(E, HEADS, 7, dropout=0.0, batch_first=True)
        model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(L * E, 3))
        found = _rows_and_signals(model, torch.randn(N, L, E), torch.randint(3, (N,)))
        shapes = [tuple(matrix.shape) for _, _, matrix in found]
        encoder = [(3, E, E + 1), (E, E + 1), (7, E + 1), (E, 8)]
        assert shapes == [*encoder, *encoder, (3, L * E + 1)]
        for _, product, matrix in found:
            torch.testing.assert_close(product, matrix, **CLOSE)


class TestFactors:
    @pytest.mark.parametrize("cross", [False, True])
    def test_of_values_and_outputs_are_exact_where_attention_is_fixed(self, cross):
        """Keys of zero weigh all positions alike: a deep linear net with a mean, which "reduce"
        takes exactly; and queries and keys have no gradient."""
        attention = nn.MultiheadAttention(E, HEADS, batch_first=True)
        with torch.no_grad():
            attention.in_proj_weight[E : 2 * E] = 0
            attention.in_proj_weight[:E] = 0
            nn.init.normal_(attention.in_proj_bias)
            attention.in_proj_bias[: 2 * E] = 0
        model, x = _Pooled(attention, cross), torch.randn(N, L, E)
        estimator = measured(model, x, family="normal", sharing="reduce")
        block = block_of(estimator, attention.in_proj_weight)
        weight = attention.in_proj_weight
        rows = []
        for n in range(N):
            for output in model(x)[n]:
                by_weight, by_bias = torch.autograd.grad(
                    output, [weight, attention.in_proj_bias], retain_graph=True
                )
                rows.append(block.layer.matrix([by_weight, by_bias])[2].flatten())
        jacobian = torch.stack(rows)
        values = dense(block)[-E * (E + 1) :, -E * (E + 1) :]
        torch.testing.assert_close(values, jacobian.T @ jacobian / N, **EXACT)
        assert not block.moments[1][:2].any()

    def test_of_queries_and_keys_count_their_own_positions(self):
        attention = nn.MultiheadAttention(E, HEADS, batch_first=True)
        model, x = _Pooled(attention, cross=True), torch.randn(N, L, E)
        inputs, signals = block_of(
            measured(model, x, family="categorical"), attention.in_proj_weight
        ).moments
        ones = torch.cat([x, torch.ones(N, L, 1)], -1)
        queries, keys = ones[:, :2].flatten(0, 1), ones.flatten(0, 1)
        torch.testing.assert_close(inputs[0], queries.T @ queries / (2 * N), **EXACT)
        torch.testing.assert_close(inputs[1], keys.T @ keys / (L * N), **EXACT)
        torch.testing.assert_close(inputs[2], inputs[1], **EXACT)
        assert signals.shape == (3, E, E)

    @pytest.mark.parametrize("kind", ["exact", "empirical"])
    def test_do_not_depend_on_the_size_of_the_batch(self, kind):
        attention = nn.MultiheadAttention(E, HEADS, batch_first=True)
        model, x, y = _Pooled(attention), torch.randn(N, L, E), torch.randint(3, (N,))
        one, two = (
            measured(
                model,
                x.repeat(k, 1, 1),
                lambda z, k=k: F.cross_entropy(z, y.repeat(k)),
                family="categorical",
                kind=kind,
            )
            for k in (1, 2)
        )
        assert_same_moments(one, two)

    @pytest.mark.parametrize("need_weights", [False, True])
    def test_without_reentry_of_checkpoints(self, need_weights):
        """Recomputation sets attention out as the first pass did, and records nothing."""
        model = _Pooled(nn.MultiheadAttention(E, HEADS, batch_first=True))
        model.need_weights = need_weights
        x = torch.randn(N, L, E)
        expected = measured(model, x, family="categorical")
        estimator = KroneckerFisher(model, family="categorical", kind="exact")
        checkpoint(model, x, use_reentrant=False).sum().backward()
        assert_same_moments(expected, finished(estimator))


class TestCopies:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_are_silent_and_listen_when_asked(self, copied):
        model, x = _Pooled(nn.MultiheadAttention(E, HEADS, batch_first=True)), torch.randn(N, L, E)
        estimator = KroneckerFisher(model, family="categorical", kind="exact")
        other = copied(model)
        assert other.attention.forward.module is other.attention
        assert not other.attention.forward.listeners
        torch.testing.assert_close(other(x), model(x), **CLOSE)
        assert "forward" not in other.attention.__dict__
        other(x).sum().backward()
        assert not estimator.seen
        with torch.no_grad():  # it computes with its own weights
            other.attention.in_proj_weight.zero_()
        assert not torch.allclose(other(x), model(x))
        second = measured(other, x, family="categorical")
        assert all(block.moments for block in second.blocks)
        third = copied(estimator)
        third.model(x).sum().backward()
        assert (estimator.seen, third.seen) == (0, 1)
        del second
        assert "forward" not in other.attention.__dict__

    def test_two_estimators_hear_the_same(self):
        model, x = _Pooled(nn.MultiheadAttention(E, HEADS, batch_first=True)), torch.randn(N, L, E)
        one = KroneckerFisher(model, family="categorical", kind="exact")
        two = KroneckerFisher(model, family="categorical", kind="exact")
        model(x).sum().backward()
        assert_same_moments(finished(one), finished(two))
        del one
        model(x).sum().backward()
        assert two.seen == 1
        del two
        assert "forward" not in model.attention.__dict__

    def test_a_forward_method_of_somebody_else_is_respected(self):
        attention = nn.MultiheadAttention(E, HEADS, batch_first=True)
        mine = attention.forward
        attention.forward = lambda *args, **kwargs: mine(*args, **kwargs)
        estimator = KroneckerFisher(_Pooled(attention))
        assert not isinstance(attention.forward, AttentionForward)
        assert isinstance(block_of(estimator, attention.out_proj.weight), FreeBlock)
