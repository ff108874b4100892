"""K-FAC written out with dense matrices, for stacks of linear layers and activations."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn import functional as F


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def inputs_and_signals(model: nn.Sequential, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Per layer [a, 1] [N, d], and J [N, C, o] of the logits by the layer's output."""
    seen: list[Tensor] = []

    def logits(shifts: list[Tensor], value: Tensor) -> Tensor:
        count = 0
        for module in model:
            value = module(value)
            if isinstance(module, nn.Linear):
                value = value + shifts[count]
                count += 1
        return value

    value = x
    for module in model:
        if isinstance(module, nn.Linear):
            seen.append(torch.cat([value, torch.ones(len(x), 1)], 1).detach())
        value = module(value)
    shifts = [torch.zeros(layer.out_features) for layer in linears(model)]
    return seen, list(vmap(jacrev(logits), in_dims=(None, 0))(shifts, x))


def inner_fisher(logits: Tensor) -> Tensor:
    p = logits.softmax(-1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def factors(model: nn.Sequential, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(A, G) per layer, exact Fisher of a categorical likelihood."""
    inner = inner_fisher(model(x).detach())
    return [
        (
            torch.einsum("ni,nj->ij", a, a) / len(x),
            torch.einsum("nki,nkl,nlj->ij", j, inner, j).detach() / len(x),
        )
        for a, j in zip(*inputs_and_signals(model, x), strict=True)
    ]


def damped_blocks(moments: list[tuple[Tensor, Tensor]], damping: float) -> list[Tensor]:
    """(G + √λ/π I) ⊗ (A + π√λ I), over [W | b] row by row."""
    blocks = []
    for a, g in moments:
        pi = math.sqrt(float((a.trace() / len(a)) / (g.trace() / len(g))))
        root = math.sqrt(damping)
        left = g + root / pi * torch.eye(len(g))
        right = a + root * pi * torch.eye(len(a))
        blocks.append(torch.kron(left.contiguous(), right.contiguous()))
    return blocks


def joined(weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat([weight, bias.unsqueeze(1)], 1).flatten()


def parted(vector: Tensor, layer: nn.Linear) -> list[Tensor]:
    matrix = vector.view(layer.out_features, layer.in_features + 1)
    return [matrix[:, :-1], matrix[:, -1]]


@dataclass
class DenseKFAC:
    """The plain loop, one parameter list [W, b, W, b, …]."""

    model: nn.Sequential
    lr: list[float]
    damping: float = 0.01
    kl_clip: float = math.inf
    momentum: float = 0.0
    decay: list[float] = field(default_factory=lambda: [0.0] * 6)
    decoupled: bool = False
    statistics_interval: int = 1
    inverse_interval: int = 1
    statistics_decay: float = 0.95
    burn_in: int = 0
    steps: int = 0
    batches: int = 0
    clips: list[float] = field(default_factory=list)
    moments: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    blocks: list[Tensor] = field(default_factory=list)
    velocity: list[Tensor] = field(default_factory=list)

    def statistics(self, x: Tensor) -> None:
        fresh = factors(self.model, x)
        self.batches += 1
        past = min(1 - 1 / self.batches, self.statistics_decay)
        self.moments = (
            [
                (past * a + (1 - past) * a_new, past * g + (1 - past) * g_new)
                for (a, g), (a_new, g_new) in zip(self.moments, fresh, strict=True)
            ]
            if self.moments
            else fresh
        )

    @property
    def parameters(self) -> list[Tensor]:
        return [p for layer in linears(self.model) for p in (layer.weight, layer.bias)]

    def natural(self, gradients: list[Tensor]) -> list[Tensor]:
        result = []
        for i, (layer, block) in enumerate(zip(linears(self.model), self.blocks, strict=True)):
            solved = torch.linalg.solve(block, joined(*gradients[2 * i : 2 * i + 2]))
            result += parted(solved, layer)
        return result

    def step(self, x: Tensor, y: Tensor) -> None:
        loss = F.cross_entropy(self.model(x), y)
        gradients = list(torch.autograd.grad(loss, self.parameters))
        l2 = [0.0] * 6 if self.decoupled else self.decay
        gradients = [
            g + d * p.detach() for g, d, p in zip(gradients, l2, self.parameters, strict=True)
        ]
        with torch.no_grad():
            if self.steps < self.burn_in or self.steps % self.statistics_interval == 0:
                self.statistics(x)
            if self.steps >= self.burn_in:
                if (self.steps - self.burn_in) % self.inverse_interval == 0:
                    self.blocks = damped_blocks(self.moments, self.damping + max(l2))
                self.move(gradients, self.natural(gradients))
        self.steps += 1

    def move(self, gradients: list[Tensor], natural: list[Tensor]) -> None:
        inner = sum(
            float((g * u).sum()) * lr**2
            for g, u, lr in zip(gradients, natural, self.lr, strict=True)
        )
        clip = min(1.0, math.sqrt(2 * self.kl_clip / inner)) if inner > 0 else 1.0
        self.clips.append(clip)
        fresh = [-clip * lr * u for u, lr in zip(natural, self.lr, strict=True)]
        old = self.velocity or [torch.zeros_like(u) for u in fresh]
        self.velocity = [
            self.momentum * v + (1 - self.momentum) * u for v, u in zip(old, fresh, strict=True)
        ]
        for p, v, lr, d in zip(self.parameters, self.velocity, self.lr, self.decay, strict=True):
            if self.decoupled:
                p *= 1 - lr * d
            p += v
