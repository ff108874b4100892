"""Listening in the plain loop: what is noted, what is not, and what is kept alive."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from npg.curvature.kronecker import KroneckerFisher
from npg.errors import ConfigurationError
from tests.npg.curvature.kronecker.helpers import (
    EXACT,
    assert_same_moments,
    finished,
    measured,
    moments,
)
from tests.npg.oracles import Checkpointed, mlp


def _by_hand(model: nn.Sequential, x):
    """Factors of a Linear/activation stack under a categorical prediction, written out."""
    inputs, outputs = [], []
    for layer in model:
        if isinstance(layer, nn.Linear):
            inputs.append(torch.cat([x, torch.ones(len(x), 1)], 1).detach())
            x = layer(x)
            outputs.append(x)
        else:
            x = getattr(F, type(layer).__name__.lower())(x)  # not in place
    p = x.softmax(-1).detach()
    found = []
    for a, z in zip(inputs, outputs, strict=True):
        signals = torch.zeros(z.shape[1], z.shape[1])
        for k in range(p.shape[1]):
            # √p_k (e_k − p): Σ_k of their outer products is diag(p) − p pᵀ.
            column = p[:, k : k + 1].sqrt() * (torch.eye(p.shape[1])[k] - p)
            (delta,) = torch.autograd.grad(x, z, column, retain_graph=True)
            signals += delta.T @ delta / len(a)
        found += [a.T @ a / len(a), signals]
    return found


class TestFactors:
    @pytest.mark.parametrize("inplace", [True, False])
    def test_are_those_by_hand(self, inplace):
        model, x = mlp(lambda: nn.ReLU(inplace=inplace)), torch.randn(9, 3)
        estimator = measured(model, x, family="categorical")
        for found, expected in zip(moments(estimator), _by_hand(model, x), strict=True):
            torch.testing.assert_close(found, expected, **EXACT)

    @pytest.mark.parametrize("inplace", [True, False])
    def test_of_the_loss_are_those_by_hand(self, inplace):
        model, x = mlp(lambda: nn.ReLU(inplace=inplace)), torch.randn(9, 3)
        y = torch.randint(3, (9,))
        estimator = measured(model, x, lambda z: F.cross_entropy(z, y), kind="empirical")
        hidden = torch.relu(model[0](x))
        delta = (model(x).softmax(-1) - F.one_hot(y, 3)) @ model[4].weight
        delta = delta * (model[2](hidden) > 0) @ model[2].weight * (hidden > 0)
        expected = (delta.T @ delta / 9).detach()
        torch.testing.assert_close(estimator.blocks[0].moments[1], expected, **EXACT)

    @pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
    def test_do_not_touch_gradients_or_the_loss(self, kind):
        model, x, y = mlp(lambda: nn.ReLU(inplace=True)), torch.randn(9, 3), torch.randint(3, (9,))
        loss = F.cross_entropy(model(x), y)
        expected = torch.autograd.grad(loss, list(model.parameters()))
        estimator = KroneckerFisher(model, family="categorical", kind=kind)
        heard = F.cross_entropy(model(x), y)
        heard.backward()
        finished(estimator)
        assert torch.equal(heard, loss)
        for p, gradient in zip(model.parameters(), expected, strict=True):
            assert torch.equal(p.grad, gradient)

    def test_survive_writing_to_the_output(self):
        """Masked actions: logits[illegal] = −∞, in place, after the model returned them."""
        model, x = mlp(), torch.randn(9, 3)
        expected = measured(model, x, family="categorical")
        estimator = KroneckerFisher(model, family="categorical", kind="exact")
        logits = model(x)
        logits[:, 0] = -1e9
        logits /= 2
        logits.sum().backward()
        assert_same_moments(expected, finished(estimator))

    def test_of_inputs_by_keyword(self):
        class ByName(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(3, 2)

            def forward(self, x):
                return self.layer(input=x)

        model, x = ByName(), torch.randn(4, 3)
        assert_same_moments(
            measured(model, x, family="normal"), measured(model.layer, x, family="normal")
        )


class TestSilence:
    def test_of_a_model_that_is_evaluated_or_has_no_graph(self):
        model, x = mlp(), torch.randn(4, 3)
        estimator = KroneckerFisher(model, family="categorical")
        output = model.eval()(x)
        output.sum().backward()
        model.train()
        with torch.no_grad():
            model(x)
        with torch.inference_mode():
            model(x)
        estimator.capture.active = False
        model(x).sum().backward()
        assert estimator.seen == 0
        assert not estimator.capture.take().noted

    def test_of_frozen_layers_and_unused_ones(self):
        model, x = mlp(), torch.randn(4, 3)
        expected = _by_hand(model, x)
        model.add_module("idle", nn.Linear(3, 3))
        model[0].requires_grad_(False)
        model[2].bias.requires_grad_(False)
        used = model[:5]
        model.forward = lambda x: used(x)  # leaves "idle" out
        estimator = measured(model, x, family="categorical")
        shapes = [[tuple(m.shape) for m in block.moments] for block in estimator.blocks]
        assert shapes == [[(4, 4), (5, 5)], [(6, 6), (3, 3)], []]
        # A frozen bias leaves its coordinate out.
        torch.testing.assert_close(estimator.blocks[0].moments[0], expected[2][:4, :4], **EXACT)
        torch.testing.assert_close(estimator.blocks[1].moments[1], expected[5], **EXACT)

    def test_a_model_with_nothing_to_train_is_refused(self):
        with pytest.raises(ConfigurationError, match="can be trained"):
            KroneckerFisher(mlp().requires_grad_(False))

    def test_a_part_of_the_parameters_has_a_part_of_the_blocks(self):
        model, x = mlp(), torch.randn(4, 3)
        estimator = measured(model, x, family="categorical", parameters=model[2].parameters())
        (block,) = estimator.blocks
        assert block.parameters == [model[2].weight, model[2].bias]
        torch.testing.assert_close(block.moments[1], _by_hand(model, x)[3], **EXACT)


class TestCheckpointing:
    @pytest.mark.parametrize("kind", ["exact", "empirical"])
    def test_without_reentry_records_once(self, kind):
        model, x = Checkpointed(), torch.randn(5, 3)
        plain = nn.Sequential(model.body, model.head)
        options = {"family": "categorical", "kind": kind}
        expected = measured(plain, x, **options)
        estimator = KroneckerFisher(model, **options)
        model(x).sum().backward()
        assert kind == "empirical" or estimator.seen == 1
        assert not estimator.capture.open.noted  # recomputation noted nothing
        assert_same_moments(expected, finished(estimator))

    def test_of_the_whole_model_records_once(self):
        model, x = mlp(), torch.randn(5, 3)
        expected = measured(model, x, family="categorical")
        estimator = KroneckerFisher(model, family="categorical", kind="exact")
        checkpoint(model, x, use_reentrant=False).sum().backward()
        assert estimator.seen == 1
        assert not estimator.capture.open.noted
        assert_same_moments(expected, finished(estimator))

    @pytest.mark.parametrize("family", ["categorical", None])
    @pytest.mark.parametrize("kind", ["sampled", "empirical"])
    def test_with_reentry_is_refused(self, family, kind):
        model, x = Checkpointed(reentrant=True), torch.randn(5, 3)
        KroneckerFisher(model, kind="empirical", family=family)
        estimator = KroneckerFisher(model, family=family, kind=kind)
        with pytest.raises(ConfigurationError, match="use_reentrant=False"):
            model(x.requires_grad_())
        assert estimator.seen == 0

    def test_with_reentry_outside_a_tensor_is_refused_by_observe(self):
        class Policy(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = Checkpointed(reentrant=True)

            def forward(self, x):
                return Categorical(logits=self.body(x))

        model, x = Policy(), torch.randn(5, 3)
        estimator = KroneckerFisher(model)
        with pytest.raises(ConfigurationError, match="use_reentrant=False"):
            estimator.observe(model(x.requires_grad_()))

    def test_a_part_without_a_graph_is_none(self):
        class Backbone(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

            def forward(self, x):
                with torch.no_grad():
                    x = self.body(x)
                return self.head(x)

        estimator = measured(Backbone(), torch.randn(5, 3), family="categorical")
        assert [len(block.moments) for block in estimator.blocks] == [0, 2]


class _Mark:
    """Lives as long as the node of a graph that it is put on: nodes have no weak references."""


def _marked(tensor):
    mark = tensor.grad_fn.metadata["mark"] = _Mark()
    return weakref.ref(mark)


class TestMemory:
    @pytest.mark.parametrize("options", [{"family": "categorical"}, {"kind": "empirical"}, {}])
    def test_passes_without_backward_are_let_go(self, options):
        class Watched(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.made = mlp(), []

            def forward(self, x):
                x = self.body(x)
                self.made.append(_marked(x))
                return x * 1

        model = Watched()
        estimator = KroneckerFisher(model, **options)
        for _ in range(200):
            model(torch.randn(2, 3))
        gc.collect()
        alive = sum(ref() is not None for ref in model.made)
        assert alive == (0 if options else 8)  # the last ones wait for observe()
        estimator.clear()
        assert not any(ref() is not None for ref in model.made)

    def test_a_measured_pass_is_let_go(self):
        model = mlp()
        estimator = KroneckerFisher(model, family="categorical")
        output = model(torch.randn(2, 3))
        mark = _marked(output)
        output.sum().backward()
        assert mark() is not None
        del output
        assert mark() is None
        assert estimator.seen == 1

    @pytest.mark.parametrize("kind", ["sampled", "empirical"])
    def test_hooks_end_with_the_estimator(self, kind):
        model = nn.Sequential(mlp(), nn.LayerNorm(3))
        estimator = KroneckerFisher(model, family="categorical", kind=kind)
        assert sum(len(module._forward_hooks) for module in model.modules()) == 5
        ghost = weakref.ref(estimator)
        del estimator
        assert ghost() is None  # without the garbage collector
        assert not any(module._forward_hooks for module in model.modules())
        model(torch.randn(2, 3)).sum().backward()
