"""A classifier that is trained on its hits alone, by every kind of optimizer."""

import pytest
import torch
from torch import nn

from npg.objectives import score_function
from npg.optim import create, takes, train_step

# One of each kind of step that has a gradient; None is its own rate.
RATES = {
    "adahessian": None,
    "adamw": 0.05,
    "bfgs": None,
    "ekfac": None,
    "gauss-newton": None,
    "kbfgs": None,
    "kfac": None,
    "langevin": 1.0,
    "lbfgs": None,
    "loss-flow": None,
    "mle-guided-search": None,
    "muon": 0.1,
    "natural-gradient": None,
    "newton": None,
    "newton-cg": None,
    "sgd": 0.5,
    "shampoo": 0.1,
    "soap": 0.03,
    "sophia-g": 0.05,
    "sophia-h": 0.05,
    "sr1": None,
}
STEPS = 30


@pytest.mark.parametrize("name", RATES)
def test_hits_become_more(name):
    """Closures that are run several times a step draw the same labels each time."""
    x = torch.randn(128, 4)
    y = x[:, :3].argmax(1)
    model = nn.Linear(4, 3)
    options = {"likelihood": "categorical"} if takes(name, "likelihood") else {}
    optimizer = create(name, model, RATES[name], **options)

    def forward():
        logits = model(x)
        misses = 1 + score_function(logits, lambda drawn: drawn == y, samples=32)
        return misses, logits

    def expected():
        with torch.no_grad():
            return model(x).softmax(1)[torch.arange(128), y].mean().item()

    before = expected()
    misses = [train_step(optimizer, forward) for _ in range(STEPS)]
    assert misses[0] == pytest.approx(1 - before, abs=0.05)
    assert before < 0.4
    assert expected() > 0.5
