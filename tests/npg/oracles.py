"""Reference answers that share no code with npg: dense matrices, and models to take them of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

TIGHT = {"rtol": 1e-8, "atol": 1e-10}


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def trained(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def jacobian_by_rows(output: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """[outputs, P], by one plain backward pass per output element."""
    rows = []
    for element in output.reshape(-1):
        gradients = torch.autograd.grad(
            element, parameters, retain_graph=True, materialize_grads=True
        )
        rows.append(flat(gradients))
    return torch.stack(rows)


def unflatten(vector: Tensor, model: nn.Module) -> dict[str, Tensor]:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    pieces = vector.split([p.numel() for p in named.values()])
    return {n: v.view(p.shape) for (n, p), v in zip(named.items(), pieces, strict=True)}


def functional_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """[outputs, P], by torch.func on a functional call."""

    def output(vector: Tensor) -> Tensor:
        return functional_call(model, unflatten(vector, model), (x,)).reshape(-1)

    return jacrev(output)(flat(trained(model)).detach())


def functional_hessian(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """[P, P] of loss(model(x)), by torch.func on a functional call."""

    def value(vector: Tensor) -> Tensor:
        return loss(functional_call(model, unflatten(vector, model), (x,)))

    return jacrev(jacrev(value))(flat(trained(model)).detach())


def categorical_kl(old: Tensor, new: Tensor) -> Tensor:
    """Mean KL of softmaxes, samples first and classes last, written out."""
    a, b = old.log_softmax(-1), new.log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1).mean()


def categorical_fisher(jacobian: Tensor, logits: Tensor) -> Tensor:
    """Mean over samples of Jᵀ (diag(p) − p pᵀ) J, dense."""
    p = logits.softmax(-1).reshape(-1, logits.shape[-1])
    inner = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    rows = jacobian.reshape(*p.shape, -1)
    return torch.einsum("nki,nkl,nlj->ij", rows, inner, rows) / len(p)


def mlp(activation: Callable[[], nn.Module] = nn.Tanh, bias: bool = True) -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 4, bias=bias),
        activation(),
        nn.Linear(4, 5, bias=bias),
        activation(),
        nn.Linear(5, 3, bias=bias),
    )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class DotProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(2, 6)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


class Tied(nn.Module):
    """One weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(torch.tanh(self.shared(x)))


class TiedTranspose(nn.Module):
    """A decoder with the encoder's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.encoder(x)) @ self.encoder.weight


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.layer(x))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(2, 2)
        self.used = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


class Rounded(nn.Module):
    """The gradient of the lower layer is zero, and has no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Linear(3, 4)
        self.upper = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.upper(torch.tanh(torch.round(3 * self.lower(x))))


class SharedBias(nn.Module):
    """One number added to every output."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.bias = nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Scaled(nn.Module):
    """addmm with a factor: 2 x Wᵀ + 3 b."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.layer.bias, x, self.layer.weight.t(), alpha=2, beta=3)


class Times(nn.Module):
    """x W, without a transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Normalised(nn.Module):
    """Logits as a Categorical computes them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return z - z.logsumexp(-1, keepdim=True)


class WronglyNormalised(nn.Module):
    """Looks like log-softmax, and on a square batch subtracts across samples."""

    def __init__(self, alpha: float = 1.0, dim: int = 1, keepdim: bool = True) -> None:
        super().__init__()
        self.alpha, self.dim, self.keepdim = alpha, dim, keepdim
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x[:3])
        return torch.sub(z, z.logsumexp(self.dim, keepdim=self.keepdim), alpha=self.alpha)


def frozen(*names: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = mlp()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in names)
        return model

    return make


def _convolution() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    model(torch.randn(8, 2, 4, 4))  # running statistics other than 0 and 1
    return model.eval()


def _convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2, groups=2, dilation=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def _frozen_convolution() -> nn.Module:
    model = _convolutions()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


def _normed() -> nn.Module:
    return nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 3))


@dataclass(frozen=True)
class Case:
    """A model, its input, and whether it is a chain of affine layers and activations.

    ``functional`` says whether torch.func can be the oracle.
    """

    model: Callable[[], nn.Module]
    shape: tuple[int, ...] = (5, 3)
    chain: bool = False
    functional: bool = True

    def make(self) -> tuple[nn.Module, Tensor]:
        model = self.model()
        if len(self.shape) == 1:
            return model, torch.randint(4, self.shape)
        return model, torch.randn(self.shape)


CASES: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(3, 3), chain=True),
    "linear without bias": Case(lambda: nn.Linear(3, 3, bias=False), chain=True),
    "no activation": Case(lambda: mlp(nn.Identity), chain=True),
    "tanh": Case(mlp, chain=True),
    "tanh without bias": Case(lambda: mlp(bias=False), chain=True),
    "relu": Case(lambda: mlp(nn.ReLU), chain=True),
    "relu in place": Case(lambda: mlp(lambda: nn.ReLU(inplace=True)), chain=True, functional=False),
    "sigmoid": Case(lambda: mlp(nn.Sigmoid), chain=True),
    "leaky relu": Case(lambda: mlp(lambda: nn.LeakyReLU(0.3)), chain=True),
    "leaky relu in place": Case(
        lambda: mlp(lambda: nn.LeakyReLU(0.3, inplace=True)), functional=False
    ),
    "elu": Case(lambda: mlp(lambda: nn.ELU(0.7)), chain=True),
    "elu in place": Case(lambda: mlp(lambda: nn.ELU(inplace=True)), functional=False),
    "selu": Case(lambda: mlp(nn.SELU)),
    "celu": Case(lambda: mlp(lambda: nn.CELU(0.5))),
    "gelu": Case(lambda: mlp(nn.GELU), chain=True),
    "gelu by tanh": Case(lambda: mlp(lambda: nn.GELU("tanh")), chain=True),
    "silu": Case(lambda: mlp(nn.SiLU), chain=True),
    "silu in place": Case(lambda: mlp(lambda: nn.SiLU(inplace=True)), chain=True, functional=False),
    "activation on top": Case(lambda: nn.Sequential(mlp(), nn.Tanh()), chain=True),
    "activation below": Case(lambda: nn.Sequential(nn.Tanh(), mlp()), chain=True),
    "softplus": Case(lambda: mlp(nn.Softplus)),
    "log-softmax": Case(Normalised, chain=True),
    "log-softmax without keepdim": Case(lambda: WronglyNormalised(keepdim=False)),
    "log-softmax over samples": Case(lambda: WronglyNormalised(dim=0)),
    "half a log-softmax": Case(lambda: WronglyNormalised(alpha=0.5)),
    "flattened input": Case(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)),
        (5, 2, 3),
        chain=True,
    ),
    "sequence input": Case(mlp, (2, 4, 3), chain=True),
    "reshaped between layers": Case(
        lambda: nn.Sequential(
            nn.Linear(3, 6), nn.Tanh(), nn.Unflatten(1, (3, 2)), nn.Linear(2, 1), nn.Flatten()
        ),
        chain=True,
    ),
    "single input": Case(
        lambda: nn.Sequential(mlp(), nn.Unflatten(-1, (1, 3))), (5, 3), chain=True
    ),
    "frozen first layer": Case(frozen("0.weight", "0.bias"), chain=True),
    "frozen middle layer": Case(frozen("2.weight", "2.bias")),
    "frozen last layer": Case(frozen("4.weight", "4.bias")),
    "frozen first weight": Case(frozen("0.weight")),
    "frozen biases": Case(frozen("0.bias", "2.bias", "4.bias"), chain=True),
    "all but the last bias frozen": Case(
        frozen("0.weight", "0.bias", "2.weight", "2.bias", "4.weight")
    ),
    "tied": Case(Tied),
    "tied transpose": Case(TiedTranspose),
    "unused parameters": Case(Unused, chain=True),
    "residual": Case(Residual),
    # torch.func's Hessian of a LayerNorm is not symmetric in torch 2.13.
    "layer norm": Case(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)), functional=False
    ),
    "weight norm": Case(_normed, functional=False),
    "shared bias": Case(SharedBias),
    "scaled addmm": Case(Scaled),
    "untransposed weight": Case(Times),
    "rounded": Case(Rounded),
    "convolutions": Case(_convolutions, (4, 2, 6, 6), chain=True),
    "frozen first convolution": Case(_frozen_convolution, (4, 2, 6, 6), chain=True),
    "convolution in one dimension": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3)),
        (5, 2, 4),
        chain=True,
    ),
    "transposed convolution": Case(
        lambda: nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.Flatten(), nn.Linear(15, 3)),
        (5, 2, 4),
    ),
    "convolution and batch norm": Case(_convolution, (4, 2, 4, 4)),
    "lstm": Case(Recurrent, (4, 3, 2), functional=False),
    "multihead attention": Case(lambda: Attention().eval(), (3, 4, 4), functional=False),
    "dot-product attention": Case(DotProduct, (3, 4, 2), functional=False),
    "embedding": Case(lambda: nn.Sequential(nn.Embedding(4, 3), mlp()), (6,)),
    "checkpointed": Case(Checkpointed, chain=True, functional=False),
}


def classifier() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network, inputs, and labels."""
    return mlp(), torch.randn(7, 3), torch.randint(3, (7,))
