"""Per-sample gradients by autograd, and the dense matrices that K-FAC and EKFAC make of them."""

import torch
from torch import nn
from torch.nn import functional as F

from npg.curvature.kronecker import KroneckerFisher
from npg.preconditioners import EigenbasisInverse
from tests.npg.oracles import Tied, mlp


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv1d(4, 6, 2, groups=2)
        self.head = nn.Linear(18, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)).flatten(1))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2, bias=False), nn.Flatten(), nn.Linear(8, 3)
    )


class Mean(nn.Module):
    """A layer at several positions, whose outputs are averaged."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)).mean(1))


NETS = {
    "mlp": (mlp, (9, 3)),
    "no bias": (lambda: mlp(bias=False), (9, 3)),
    "convolutions": (convolutional, (6, 2, 4, 4)),
    "groups": (Grouped, (6, 4, 4)),
    "shared positions": (Mean, (7, 5, 3)),
    "tied": (Tied, (9, 3)),
}


def measured(model, x, kind="exact", y=None, inverse=None, fisher=None):
    """One batch of statistics, taken in."""
    fisher = fisher or KroneckerFisher(
        model, family="categorical", kind=kind, keep_rows=True,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    labels = torch.zeros(len(x), dtype=torch.long) if y is None else y
    inverse = inverse or EigenbasisInverse(fisher.blocks)
    F.cross_entropy(model(x), labels).backward()
    fisher.finish()
    rows = inverse.rows()
    fisher.update(0.95)
    inverse.follow(rows, 0.95)
    fisher.clear()
    return fisher, inverse


def score_roots(model, x, kind, y):
    """Rows [S, P] per sample and label or column, with Σ over them / N the Fisher matrix."""
    parameters = list(model.parameters())
    rows = []
    model.eval()  # nobody listens
    for i in range(len(x)):
        logits = model(x[i : i + 1])[0]
        if kind == "empirical":
            cotangents = [F.one_hot(y[i], 3) - logits.softmax(0).detach()]
        else:
            p = logits.softmax(0).detach()
            values, vectors = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
            cotangents = list((vectors * values.clamp(min=0).sqrt()).T)
        for cotangent in cotangents:
            found = torch.autograd.grad(
                logits, parameters, cotangent.to(logits), retain_graph=True,
                materialize_grads=True,
            )  # fmt: skip
            rows.append(dict(zip(parameters, found, strict=True)))
    model.train()
    return rows


def matrices(block, gradients):
    """[(g,) o, d] of every sample."""
    return torch.stack([block.layer.matrix([g[p] for p in block.parameters]) for g in gradients])


def dense_groups(block, stacked, n):
    """Per group the block of F [o d, o d], flattened row by row."""
    grouped = stacked.unsqueeze(1) if stacked.ndim == 3 else stacked
    return [
        (rows := grouped[:, g].flatten(1)).T @ rows / n for g in range(grouped.shape[1])
    ]  # fmt: skip


def as_groups(matrix):
    return [matrix] if matrix.ndim == 2 else list(matrix)


def kfac_and_ekfac(block, inverse, i):
    """Per group G ⊗ A, and Q diag(S) Qᵀ."""
    inputs, signals = inverse.inverses[i]
    result = []
    for a, g, q_a, q_g, s in zip(
        *map(as_groups, (*block.moments, inputs, signals, inverse.scales[i])), strict=True
    ):
        basis = torch.kron(q_g.contiguous(), q_a.contiguous())
        corrected = basis @ torch.diag(s.flatten()) @ basis.T
        result.append((torch.kron(g.contiguous(), a.contiguous()), corrected))
    return result
