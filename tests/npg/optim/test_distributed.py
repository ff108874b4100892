"""Every optimizer in two processes with half of the batch each, against one with all of it."""

import math

import pytest
import torch
import torch.distributed
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from npg import optim
from npg.errors import ConfigurationError, NumericalError
from npg.likelihoods import families
from tests.npg.optim.helpers import snapshot
from tests.processes import in_two_processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without it"
)
STEPS = 3
LIKELIHOOD = {"likelihood": "categorical"}
# An optimizer's name, and options that take another way through it.
VARIANTS = {
    **{name: (name, {}) for name in optim.names()},
    "natural-gradient": ("natural-gradient", LIKELIHOOD),
    "dense": ("natural-gradient", {**LIKELIHOOD, "curvature": "fisher-dense"}),
    "sampled": ("natural-gradient", {**LIKELIHOOD, "fisher": "sampled"}),
    "kfac direction": ("natural-gradient", {**LIKELIHOOD, "curvature": "kfac"}),
    "hessian": ("newton-cg", {"matrix": "hessian"}),
    "fisher": ("newton-cg", {"matrix": "fisher", **LIKELIHOOD}),
    "preconditioned": ("newton-cg", {"cg_preconditioner": "kfac", **LIKELIHOOD}),
    "kfac": ("kfac", LIKELIHOOD),
    "ekfac": ("ekfac", LIKELIHOOD),
    "sophia-g": ("sophia-g", {**LIKELIHOOD, "hessian_interval": 1}),
    "evolution-strategies": ("evolution-strategies", {"candidates": 4}),
    "mle-guided-search": ("mle-guided-search", {"candidates": 4}),
}


def model_and_data(outputs: int = 3):
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, outputs))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=generator)
    return model, x, torch.randint(3, (40,), generator=generator)


def labels_alike(patch: pytest.MonkeyPatch) -> None:
    """Labels of a function of the prediction: those that two ranks draw are not one process's."""
    patch.setattr(
        families.CategoricalLikelihood, "sample", lambda self, d, generator: d.probs.argmin(-1)
    )
    patch.setattr(
        families.CategoricalLikelihood,
        "draws",
        lambda self, d, number, generator: d.probs.argmin(-1).expand(number, *d.batch_shape),
        raising=False,
    )


def train(name, model, x, y) -> list[float]:
    kind, options = VARIANTS[name]
    optimizer = optim.create(kind, model, **options)

    def forward():
        logits = model(x)
        return F.cross_entropy(logits, y), logits

    return [optim.train_step(optimizer, forward) for _ in range(STEPS)]


def one_output(model, x) -> list[float]:
    """Kronecker factors of a chain with one output, as agents' critics have."""
    optimizer = optim.NewtonCG(model, damping=0.1, kronecker_cg_max_steps=3, deterministic=False)

    def closure():
        values = model(x)
        return (values.squeeze(1) - x[:, 0].exp()).square().mean(), values

    return [float(optimizer.step(closure)) for _ in range(STEPS)]


def _process(rank: int) -> dict:
    found: dict = {}
    own = slice(0, 20) if rank == 0 else slice(20, 40)
    with pytest.MonkeyPatch.context() as patch:
        labels_alike(patch)
        for name in VARIANTS:
            model, x, y = model_and_data()
            wrapped = DistributedDataParallel(model)
            found[name] = (train(name, wrapped, x[own], y[own]), snapshot(model))
            # What is no number on one rank is none on the other.
            model, x, y = model_and_data()
            if rank == 0:
                x[0] = math.inf
            try:
                train(name, DistributedDataParallel(model), x[own], y[own])
            except NumericalError as error:
                found[f"bad {name}"] = str(error)
            else:
                found[f"bad {name}"] = snapshot(model)
    model, x, _ = model_and_data(outputs=1)
    wrapped = DistributedDataParallel(model)
    found["one output"] = (one_output(wrapped, x[own]), snapshot(model))
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    return in_two_processes(_process, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", VARIANTS)
def test_is_one_process_with_the_whole_batch(name, results, monkeypatch):
    labels_alike(monkeypatch)
    model, x, y = model_and_data()
    before = snapshot(model)
    losses = train(name, model, x, y)
    (ours, first), (_, second) = (found[name] for found in results)
    assert not torch.equal(before, snapshot(model))
    assert torch.equal(first, second), "ranks do not drift apart"
    if name == "soap":  # its bases of null spaces, and so its steps, are chosen by rounding
        return
    torch.testing.assert_close(first, snapshot(model), rtol=1e-7, atol=1e-9)
    if issubclass(optim.registry._class(VARIANTS[name][0]), optim.FunctionOptimizer):
        told = VARIANTS[name][0] not in ("kfac", "ekfac")  # without a closure by this rank's own
        assert not told or ours == pytest.approx(losses, rel=1e-7)


@pytest.mark.parametrize("name", VARIANTS)
def test_ranks_agree_on_what_is_not_finite(name, results):
    first, second = (found[f"bad {name}"] for found in results)
    if isinstance(first, str):
        assert first == second
    else:
        assert torch.equal(first.nan_to_num(), second.nan_to_num())


def test_factors_of_one_output_are_those_of_the_whole_batch(results):
    model, x, _ = model_and_data(outputs=1)
    losses = one_output(model, x)
    (ours, first), (_, second) = (found["one output"] for found in results)
    assert torch.equal(first, second)
    assert ours == pytest.approx(losses, rel=1e-7)
    torch.testing.assert_close(first, snapshot(model), rtol=1e-7, atol=1e-9)


def test_rows_of_other_ranks_are_not_had(monkeypatch):
    class Replica(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model_and_data()[0]

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", Replica)
    with pytest.raises(ConfigurationError, match="memory=None"):
        optim.KBFGS(Replica(), memory=5)
