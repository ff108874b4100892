"""Pickling, copying, and devices without numbers."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from npg.curvature.kronecker import KroneckerFisher
from npg.curvature.kronecker.capture import Hook
from npg.errors import ConfigurationError
from tests.npg.curvature.kronecker.helpers import assert_same_moments, finished, measured, moments
from tests.npg.oracles import mlp

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}


def _network() -> nn.Sequential:
    return nn.Sequential(mlp(), nn.LayerNorm(3), nn.Linear(3, 3))


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
class TestCopies:
    def test_of_a_model_are_silent(self, copied):
        model, x = _network(), torch.randn(5, 3)
        estimator = KroneckerFisher(model, family="categorical")
        other = copied(model)
        hooks = [h for module in other.modules() for h in module._forward_hooks.values()]
        assert hooks
        assert all(isinstance(hook, Hook) and hook.capture is None for hook in hooks)
        other(x).sum().backward()
        assert estimator.seen == 0
        assert not estimator.capture.take().noted
        assert not any(module._forward_hooks for module in other.modules())  # after one call

    def test_of_an_estimator_listen_to_their_own_model(self, copied):
        model, x = _network(), torch.randn(5, 3)
        estimator = KroneckerFisher(
            model,
            family="categorical",
            kind="sampled",
            generator=torch.Generator().manual_seed(5),
        )
        model(x).sum().backward()
        finished(estimator)
        other = copied(estimator)
        assert other.model is not model
        assert_same_moments(estimator, other)
        model(x).sum().backward()
        assert (estimator.seen, other.seen) == (1, 0)
        other.model(x).sum().backward()
        assert (estimator.seen, other.seen) == (1, 1)
        assert_same_moments(finished(estimator), finished(other))  # the generator came along
        del estimator
        other.model(x).sum().backward()
        assert other.seen == 1

    def test_of_both_stay_together(self, copied):
        model = _network()
        estimator = KroneckerFisher(model, family="categorical")
        other_model, other = copied((model, estimator))
        assert other.model is other_model
        assert other.blocks[0].parameters[0] is other_model[0][0].weight
        other_model(torch.randn(5, 3)).sum().backward()
        assert (estimator.seen, other.seen) == (0, 1)

    def test_between_forward_and_backward(self, copied):
        model = _network()
        estimator = KroneckerFisher(model, kind="empirical")
        loss = model(torch.randn(5, 3)).sum()
        other = copied(estimator)
        loss.backward()
        other.finish()
        assert (estimator.seen, other.seen) == (0, 0)
        estimator.finish()
        assert estimator.seen == 1


class TestState:
    def test_resumes(self):
        model, x = _network(), torch.randn(5, 3)
        estimator = measured(model, x, family="categorical")
        file = io.BytesIO()
        torch.save(estimator.state(), file)
        file.seek(0)
        other = KroneckerFisher(copy.deepcopy(model), family="categorical", kind="exact")
        other.load(torch.load(file))
        assert_same_moments(estimator, other)
        estimator.capture.active = True
        for one in (estimator, other):
            one.model(2 * x).sum().backward()
            finished(one)
        assert_same_moments(estimator, other, rtol=0, atol=0)

    def test_of_another_model_is_refused(self):
        estimator = measured(_network(), torch.randn(5, 3), family="categorical")
        with pytest.raises(ConfigurationError, match="5 blocks, this model has 3"):
            KroneckerFisher(mlp()).load(estimator.state())

    def test_loading_does_not_share_memory(self):
        estimator = measured(mlp(), torch.randn(5, 3), family="categorical")
        other = KroneckerFisher(mlp())
        other.load(estimator.state())
        other.blocks[0].moments[0].zero_()
        assert bool(moments(estimator)[0].any())


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(2, 6))  # its exact Fisher costs as many products
        self.convolution = nn.Conv1d(3, 6, 3, padding=1)
        self.encoder = nn.TransformerEncoderLayer(6, 3, 5, batch_first=True)
        self.batch = nn.BatchNorm1d(2)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.convolution(x.mT).mT + self.position
        return self.head(self.batch(self.encoder(x)).mean(1))


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
class TestWithoutNumbers:
    def _step(self, kind, sharing):
        model = _Model()
        estimator = KroneckerFisher(
            model, family="categorical", kind=kind, sharing=sharing,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        x = torch.randn(5, 2, 3)
        for _ in range(2):
            model(x).logsumexp(-1).sum().backward()
            estimator.finish()
            flag = estimator.finite()
            estimator.update(0.9)
        assert all(block.moments for block in estimator.blocks)
        return estimator, flag

    def test_on_the_meta_device(self, kind, sharing):
        with torch.device("meta"):
            estimator, flag = self._step(kind, sharing)
        assert {m.device.type for m in moments(estimator)} == {"meta"}
        assert flag.device.type == "meta"

    def test_on_fake_tensors(self, kind, sharing):
        """Any read of a tensor's value would raise."""
        with FakeTensorMode(allow_non_fake_inputs=True):
            estimator, _ = self._step(kind, sharing)
        real, _ = self._step(kind, sharing)
        shapes = [m.shape for m in moments(estimator)]
        assert shapes == [m.shape for m in moments(real)]
