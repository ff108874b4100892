"""What the tests of searches without a derivative minimise."""

import torch
from torch import nn
from torch.nn import functional as F

from npg.linalg import flatten


class Point(nn.Module):
    """Parameters that are a vector, in pieces."""

    def __init__(self, start):
        super().__init__()
        self.a = nn.Parameter(start[:1].clone())
        self.b = nn.Parameter(start[1:].clone())

    def forward(self):
        return torch.cat([self.a, self.b])


def parameters_of(model):
    return flatten(p.detach() for p in model.parameters())


def classifier(dtype=torch.float64):
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    x = torch.randn(60, 3, dtype=dtype)
    return model, x, x.argmax(1)


def wrong(logits, y):
    """The share of wrong answers."""
    return (logits.argmax(-1) != y).double().mean()


def guided_closure(model, x, y):
    def closure():
        logits = model(x)
        return F.cross_entropy(logits, y), wrong(logits, y)

    return closure
