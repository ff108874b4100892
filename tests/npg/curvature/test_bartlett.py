"""The Gauss–Newton–Bartlett diagonal, against the diagonal of the dense Fisher matrix."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F

from npg.curvature import Fisher
from npg.curvature.bartlett import BartlettDiagonal
from npg.errors import ConfigurationError

FAMILIES = {
    "categorical": lambda out: Categorical(logits=out),
    "mse": lambda out: torch.distributions.Independent(Normal(out, (out.shape[1] / 2) ** 0.5), 1),
}


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))


def measured(model, x, family="categorical", **options):
    diagonal = BartlettDiagonal(
        model, model.parameters(), family=family, generator=torch.Generator().manual_seed(0)
    )
    return diagonal


@pytest.mark.parametrize("family", FAMILIES)
def test_is_unbiased(model, family):
    """The mean of many draws is diag(F); of the squared gradient at fixed labels it is not."""
    x = torch.randn(12, 2)
    wanted = Fisher(model, lambda: FAMILIES[family](model(x))).diagonal()
    estimator = measured(model, x, family)
    draws = []
    for _ in range(1500):
        model(x).sum().backward()  # whatever the loss
        taken = estimator.take()
        draws.append(torch.cat([taken[p].flatten() for p in model.parameters()]))
    draws = torch.stack(draws)
    error = (draws.mean(0) - wanted) / (draws.std(0) / len(draws) ** 0.5)
    assert float(error.abs().max()) < 5
    model.zero_grad()
    F.cross_entropy(model(x), torch.zeros(12, dtype=torch.long)).backward()
    empirical = 12 * torch.cat([p.grad.flatten().square() for p in model.parameters()])
    assert float((empirical / wanted).max()) > 3


def test_several_passes_are_one_batch(model):
    """Half a batch and the other half make what the whole makes with the same labels."""
    x = torch.randn(10, 2)
    whole = measured(model, x)
    model(x).sum().backward()
    wanted = whole.take()
    del whole
    halves = measured(model, x)
    model(x[:4]).sum().backward()
    model(x[4:]).sum().backward()
    assert halves.seen == 10
    taken = halves.take()
    for p in model.parameters():  # labels are drawn one after the other
        torch.testing.assert_close(taken[p], wanted[p], rtol=1e-12, atol=1e-14)


def test_a_mask_leaves_samples_out(model):
    x = torch.randn(6, 2)
    mask = torch.tensor([True, False, True, True, False, True])
    estimator = measured(model, x, None)
    estimator.observe(Categorical(logits=model(x)), mask)
    assert estimator.seen == 4
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(model(x).softmax(-1), 1, generator=generator).squeeze(1)
    loss = -Categorical(logits=model(x)).log_prob(labels)[mask].sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    taken = estimator.take()
    for p, g in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(taken[p], g.square() / 4, rtol=1e-12, atol=1e-14)


def test_frozen_and_unused_parameters_are_missing(model):
    model.idle = nn.Identity()
    model.idle.weight = nn.Parameter(torch.ones(2))
    model[0].weight.requires_grad_(False)
    estimator = measured(model, None)
    model(torch.randn(4, 2)).sum().backward()
    taken = estimator.take()
    assert set(taken) == {model[0].bias, model[2].weight, model[2].bias}


def test_listens_in_training_only_and_while_active(model):
    estimator = measured(model, None)
    model.eval()
    model(torch.randn(4, 2)).sum().backward()
    model.train()
    estimator.capture.active = False
    model(torch.randn(4, 2)).sum().backward()
    assert estimator.seen == 0
    with pytest.raises(ConfigurationError, match="nothing was measured"):
        estimator.take()


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copy_listens_to_its_own_model(model, how):
    estimator = measured(model, None)
    pair = (model, estimator)
    copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    copied[0](torch.randn(4, 2)).sum().backward()
    assert copied[1].seen == 4
    assert estimator.seen == 0


@pytest.mark.parametrize(
    ("prediction", "mask", "message"),
    [
        (lambda m, x: Categorical(logits=m(x).detach()), None, "no graph"),
        (lambda m, x: Categorical(logits=m(x)), torch.ones(3, dtype=torch.bool), "one entry per"),
    ],
)
def test_what_cannot_be_observed(model, prediction, mask, message):
    estimator = measured(model, None, None)
    with pytest.raises(ConfigurationError, match=message):
        estimator.observe(prediction(model, torch.randn(4, 2)), mask)


def test_the_users_gradients_are_untouched(model):
    x, y = torch.randn(4, 2), torch.randint(3, (4,))
    F.cross_entropy(model(x), y).backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    estimator = measured(model, None)
    F.cross_entropy(model(x), y).backward()
    assert estimator.seen == 4
    for p, g in zip(model.parameters(), wanted, strict=True):
        assert torch.equal(p.grad, g)
