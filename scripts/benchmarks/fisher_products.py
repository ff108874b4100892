"""A Fisher product against one forward and backward pass of the actor's surrogate."""

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from benchmarks.report import Row, interleaved, median_ratio, show
from npg.curvature import Fisher, math_attention
from npg.linalg import flatten


class Gaussian(nn.Module):
    """A network's output as the mean of a Normal with a deviation of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.log_std = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Distribution:
        mean = self.network(x)
        scale = torch.ones_like(mean) * self.log_std.exp()
        return Independent(Normal(mean, scale, validate_args=False), 1, validate_args=False)


class Discrete(nn.Module):
    """A network's output as logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Distribution:
        return Categorical(logits=self.network(x), validate_args=False)


class LastState(nn.Module):
    """An LSTM over 16 steps and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(17, 64, batch_first=True)
        self.head = nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    """A transformer layer over 16 tokens and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(17, 64)
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.head = nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


def mlp(width: int, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(17, width), activation(), nn.Linear(width, width), activation(),
        nn.Linear(width, 6),
    )  # fmt: skip


def cnn() -> nn.Module:
    """The convolutional network of Mnih et al. 2015, on 4 × 84 × 84."""
    return nn.Sequential(
        nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(),
        nn.Linear(512, 6),
    )  # fmt: skip


# (name, network, input shape, batch sizes, target)
CASES: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], tuple[int, ...], str]] = [
    ("64-64 tanh", lambda: mlp(64), (17,), (2048, 8192), "<= 1.0"),
    ("256-256 tanh", lambda: mlp(256), (17,), (2048, 8192), "<= 1.2"),
    ("256-256 GELU", lambda: mlp(256, nn.GELU), (17,), (2048, 8192), "<= 1.6"),
    ("CNN", cnn, (4, 84, 84), (128,), "<= 1.6"),
    ("LSTM", LastState, (16, 17), (2048,), "<= 1.6"),
    ("transformer layer", Attention, (16, 17), (512,), "<= 1.6"),
]


def run(rounds: int, command: str) -> None:
    """Alternates products with passes, on one graph as conjugate gradient does."""
    rows = []
    for name, network, shape, sizes, target in CASES:
        for size in sizes:
            for head in (Gaussian, Discrete):
                torch.manual_seed(0)
                model, x = head(network()), torch.randn(size, *shape)
                parameters = list(model.parameters())
                with torch.no_grad():
                    actions = model(x).sample()
                advantages = torch.randn(size)
                fisher = Fisher(model, lambda m=model, x=x: m(x))
                vector = flatten(torch.randn_like(p) for p in parameters)

                def passes(model=model, x=x, a=actions, adv=advantages, p=parameters) -> None:
                    with math_attention():
                        torch.autograd.grad((model(x).log_prob(a) * adv).mean(), p)

                def product(fisher=fisher, vector=vector) -> None:
                    fisher.matvec(vector)

                repeats = max(rounds, 5) * (6 if size * model_cost(model) < 1e8 else 1)
                pass_times, product_times = interleaved([passes, product], repeats)
                rows.append(
                    Row(
                        f"{name}, {head.__name__}, batch {size}",
                        f"product {median(product_times) * 1e3:.2f} ms",
                        f"forward + backward {median(pass_times) * 1e3:.2f} ms",
                        median_ratio(product_times, pass_times),
                        target,
                    )
                )
    show("Fisher product", rows, command)


def model_cost(model: nn.Module) -> int:
    """Number of parameters, a rough cost per sample."""
    return sum(p.numel() for p in model.parameters())
