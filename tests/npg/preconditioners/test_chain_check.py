"""Which models are chains of layers, and which are refused."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import KFAC
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import mlp


@pytest.fixture
def batches():
    return [(torch.randn(n, 3), torch.randint(3, (n,))) for n in (12, 7, 12, 9)]


def chained(model, **options):
    settings = {"kl_clip": math.inf, "momentum": 0.0, "fisher": "exact", "inverse_interval": 1}
    named = {"likelihood": "categorical", "inverse": "block-tridiagonal"}
    return KFAC(model, **{**named, **settings, **options})


def train(optimizer, model, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.third(hidden + torch.tanh(self.second(hidden)))


class SkipToOutput(Residual):
    def forward(self, x):
        hidden = self.second(torch.tanh(self.first(x)))
        return self.third(torch.tanh(hidden)) + hidden[:, :3]


class Branches(Residual):
    def __init__(self):
        super().__init__()
        self.second = nn.Linear(3, 4)

    def forward(self, x):
        return self.third(torch.tanh(self.first(x)) * torch.tanh(self.second(x)))


class OutOfOrder(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(torch.tanh(self.body(x)))))


class Unused(Residual):
    def forward(self, x):
        return self.third(torch.tanh(self.first(x)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Dictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return {"logits": self.body(x)}


REFUSED = {
    Residual: r"layer 2 must take in layer 1 alone, and takes in 0, 1.*block-diagonal",
    SkipToOutput: "the prediction must take in layer 2 alone, and takes in 1, 2",
    Branches: "layer 2 must take in layer 1 alone, and takes in 0, 1",
    OutOfOrder: r"used once each, in the order.*\[1, 0\]",
    Twice: r"used once each.*\[0, 0, 1\]",
    Unused: r"its 3 layers must be used once each.*\[0, 2\]",
    Tied: r"used once each.*\[0, 0, 1\]",
}
ACCEPTED = {
    "mlp": mlp,
    "in place": lambda: mlp(lambda: nn.ReLU(inplace=True)),
    "without biases": lambda: mlp(bias=False),
    "frozen between": lambda: _frozen_between(),
    "scaled input": lambda: nn.Sequential(nn.BatchNorm1d(3, affine=False), mlp(), nn.Softplus()),
    "residual around the whole": lambda: _Around(),
}


def _frozen_between():
    model = mlp()
    model[2].requires_grad_(False)
    return model


class _Around(nn.Module):
    """The input is no layer's output: adding it changes nothing in the chain."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return x + self.body(x)


class TestRefusals:
    @pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
    @pytest.mark.parametrize("model", REFUSED)
    def test_what_is_no_chain(self, model, kind, batches):
        made = model()
        optimizer = chained(made, fisher=kind)
        start = snapshot(made)
        for _ in range(2):  # the second time as well
            with pytest.raises(ConfigurationError, match=REFUSED[model]):
                train(optimizer, made, batches)
        assert torch.equal(snapshot(made), start)

    @pytest.mark.parametrize("model", REFUSED)
    def test_in_closures_and_in_observed_predictions(self, model, batches):
        x, y = batches[0]
        made = model()
        with pytest.raises(ConfigurationError, match=REFUSED[model]):
            chained(made, momentum=None, kl_clip=None).step(objective(made, x, y))
        made = model()
        optimizer = chained(made, likelihood=None)
        with pytest.raises(ConfigurationError, match=REFUSED[model]):
            # By forward(), so that no pass of the whole model is closed.
            optimizer.observe(Categorical(logits=made.forward(x)))

    @pytest.mark.parametrize("make", ACCEPTED.values(), ids=ACCEPTED.keys())
    def test_what_is_one(self, make, batches):
        model = make()
        optimizer = chained(model)
        train(optimizer, model, batches)
        assert optimizer.chain.done
        assert optimizer.preconditioner.ready

    @pytest.mark.parametrize(
        ("model", "shape"),
        [
            (nn.Sequential(nn.Conv1d(3, 2, 1), nn.Flatten(), nn.Linear(2, 3)), r"\(2, 3, 1\)"),
            (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)), r"\(4,\)"),
            (nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)), r"\(5, 4\)"),
        ],
        ids=["convolution", "norm", "embedding"],
    )
    def test_layers_that_are_not_linear(self, model, shape):
        with pytest.raises(ConfigurationError, match=f"shape {shape}.*block-diagonal"):
            chained(model)

    def test_several_positions(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
        x, y = torch.randn(5, 2, 3), torch.randint(3, (5, 2))
        optimizer = chained(model)
        F.cross_entropy(model(x).mT, y).backward()
        with pytest.raises(ConfigurationError, match="without weight sharing"):
            optimizer.step()

    def test_masks(self, batches):
        """The factors of inputs leave samples out; the rows of neighbours do not say which."""
        x, y = batches[0]
        model = mlp()
        optimizer = chained(model, likelihood=None)
        logits = model(x)
        optimizer.observe(Categorical(logits=logits), torch.arange(len(x)) > 2)
        F.cross_entropy(logits, y).backward()
        with pytest.raises(ConfigurationError, match="takes no mask"):
            optimizer.step()

    def test_predictions_that_nobody_sees(self, batches):
        model = Dictionary()
        optimizer = chained(model, fisher="empirical", likelihood=None)
        F.cross_entropy(model(batches[0][0])["logits"], batches[0][1]).backward()
        with pytest.raises(ConfigurationError, match="return a tensor, or call observe"):
            optimizer.step()

    def test_copies_of_one_not_yet_checked(self, batches):
        model = Residual()
        twin, other = copy.deepcopy((model, chained(model)))
        with pytest.raises(ConfigurationError, match="chain of layers"):
            train(other, twin, batches)
        model = mlp()
        twin, other = copy.deepcopy((model, chained(model)))
        train(other, twin, batches)
        assert other.chain.done

    def test_added_layers_are_looked_at(self, batches):
        model = Residual()
        own = [*model.second.parameters(), *model.third.parameters()]
        optimizer = chained(model, parameters=own)
        train(optimizer, model, batches)  # one after the other they are a chain
        optimizer.add_param_group({"params": model.first.parameters()})
        with pytest.raises(ConfigurationError, match="takes in 0, 1"):
            train(optimizer, model, batches)
