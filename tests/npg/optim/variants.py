"""The optimizers by name, each in the ways that the tests of what all of them promise take it."""

import pytest
import torch
from torch.nn import functional as F

from npg.optim import FunctionOptimizer, create, names, train_step
from tests.npg.oracles import mlp

# What a name needs beyond its defaults to train a classifier from logits, in few steps.
SETTINGS = {
    "ekfac": {"likelihood": "categorical"},
    "gauss-newton": {"radius": 1.0},
    "kfac": {"likelihood": "categorical"},
    "natural-gradient": {"likelihood": "categorical"},
    "adafactor": {"lr": 0.1},
    "adahessian": {"lr": 0.1},
    "full-matrix-adagrad": {"lr": 0.3},
    "sophia-g": {"likelihood": "categorical", "lr": 0.02},
    "sophia-h": {"lr": 0.02},
    "adagrad": {"lr": 0.1},
    "adam": {"lr": 0.03},
    "adamax": {"lr": 0.03},
    "adamw": {"lr": 0.03},
    "adax": {"lr": 0.03},
    "adaxw": {"lr": 0.03},
    "langevin": {"lr": 2.0, "temperature": 1e-18},
    "loss-flow": {"lr": 0.03},
    "mle-guided-search": {"lr": 3.0},
    "muon": {"lr": 0.1},
    "nadam": {"lr": 0.03},
    "normalized-gradient": {"lr": 0.1},
    "radam": {"lr": 0.3},
    "rmsprop": {"lr": 0.02},
    "sgd": {"lr": 0.2},
    "shampoo": {"lr": 0.03},
    "sign-sgd": {"lr": 0.02},
    "soap": {"lr": 0.03},
}
OF_TORCH = {
    "adafactor": torch.optim.Adafactor,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
VARIANTS = [
    *((name, SETTINGS.get(name, {})) for name in names()),
    ("kfac", {"likelihood": "categorical", "damping": 0.01, "momentum": 0.9, "kl_clip": 0.1}),
    ("shampoo", {"lr": 0.03, "graft": "rmsprop", "block_size": 2, "start_step": 3}),
    ("kfac", {"fisher": "empirical", "damping": 0.01, "statistics_interval": 3}),
    ("kbfgs", {"memory": 3, "momentum": 0.0}),
    ("mle-guided-search", {"lr": 0.05, "reference": "uniform", "base": torch.optim.Adam}),
    ("evolution-strategies", {"lr": 5.0, "adapt": "separable"}),
    ("evolution-strategies", {"lr": 0.05, "chunk_size": 1, "base": torch.optim.Adam}),
    ("natural-gradient", {"likelihood": "categorical", "fisher": "sampled", "seed": 3}),
    ("natural-gradient", {"likelihood": "categorical", "curvature": "fisher-dense"}),
    ("natural-gradient", {"likelihood": "categorical", "curvature": "kfac"}),
    ("natural-gradient", {"likelihood": "categorical", "cg_preconditioner": "kfac"}),
    ("newton-cg", {"matrix": "hessian"}),
    ("newton-cg", {"matrix": "fisher", "likelihood": "categorical"}),
    ("newton-cg", {"likelihood": "categorical", "cg_preconditioner": "kfac"}),
]


def listens(variant):
    """Whether it hears layers, and so must be given the module."""
    name, settings = variant
    return "kfac" in (name, *settings.values()) or name in ("ekfac", "kbfgs", "sophia-g")


def described(variant):
    return " ".join([variant[0], *map(str, variant[1].values())])


def make(variant, model, **options):
    name, settings = variant
    return create(name, model, **{**settings, **options})


def evaluates(variant):
    """Whether it drives the objective itself, and counts what became of its steps."""
    return isinstance(make(variant, mlp()), FunctionOptimizer)


def each(variants):
    """Marks a test that runs with every one of them."""
    return pytest.mark.parametrize("variant", variants, ids=described)


each_optimizer = each(VARIANTS)
# Those of this library, which say how they are driven.
OWN = [variant for variant in VARIANTS if variant[0] not in OF_TORCH]
each_own = each(OWN)
# Those that drive the objective themselves, and count what became of their steps.
each_counting = each([variant for variant in OWN if evaluates(variant)])


def forward(model, x, y):
    def closure():
        logits = model(x)
        return F.cross_entropy(logits, y), logits

    return closure


def train(optimizer, model, data, steps):
    return [train_step(optimizer, forward(model, *data)) for _ in range(steps)]
