"""What users do around an optimizer: every one of them has to go along with it."""

import copy
import gc
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import FunctionOptimizer, HessianOptimizer, create, names, takes, train_step
from tests.npg.optim.helpers import snapshot
from tests.npg.oracles import mlp

# Every line here is one that an optimizer's own tests run, and runs some thousand times.
pytestmark = pytest.mark.uncounted

# Those that must know what the model predicts.
PREDICTIVE = {"ekfac", "kfac", "natural-gradient", "sophia-g"}
# Those that solve a quadratic problem.
SECOND_ORDER = {"ekfac", "gauss-newton", "kfac", "natural-gradient", "newton", "newton-cg"}
# Those that are at a minimum after a few steps, each of which takes its time.
QUICK = {"bfgs", "dfp", "gauss-newton", "lbfgs", "newton", "newton-cg", "sr1"}
# Rates on problems of unit scale: of the others 0.1, of those with a curvature 1.
RATES = {
    "ekfac": 1.0,
    "gauss-newton": 1.0,
    "kfac": 1.0,
    "langevin": 1e-3,
    "mle-guided-search": 1.0,
    "natural-gradient": 1.0,
    "newton": 1.0,
    "newton-cg": 1.0,
    "normalized-gradient": 0.01,
    "radam": 1e-3,
    "sgd": 1e-3,
}


def made(name, model, likelihood, **options):
    if name in PREDICTIVE:
        options["likelihood"] = likelihood
    if name == "langevin":
        options["temperature"] = 1e-12
    if name == "mle-guided-search":
        options["max_grad_norm"] = 0.1  # candidates are as far away, whatever the rate
    return create(name, model, **options)


def is_gradient(name):
    kind = type(made(name, mlp(), "categorical"))
    return not issubclass(kind, FunctionOptimizer | HessianOptimizer)


# What reads numbers of the host: a search evaluates losses, a flow compares them, a solver stops.
READS = {
    name for name in names() if isinstance(made(name, mlp(), "categorical"), FunctionOptimizer)
}
GRADIENT = [name for name in names() if is_gradient(name)]


class Residuals(nn.Module):
    """‖r(θ)‖²/2 of one point, which is what a normal distribution of variance 1 predicts."""

    def __init__(self, start, residuals):
        super().__init__()
        self.point = nn.Parameter(start.clone())
        self.residuals = residuals

    def forward(self, _):
        return self.residuals(self.point).unsqueeze(0)


def rosenbrock(p):
    return 2**0.5 * torch.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]])


def ill_conditioned(p):
    return torch.logspace(0, -2, len(p)) * p


def descend(name, model, lr, steps):
    """The share of the loss that is left after so many steps, at a rate that falls to zero."""
    optimizer = made(name, model, "normal", lr=lr)
    rates = [group["lr"] for group in optimizer.param_groups]

    def forward():
        output = model(torch.zeros(1, 1))
        return output.square().sum() / 2, output

    first = float(forward()[0].detach())
    for i in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - i / steps)
        train_step(optimizer, forward)
    return float(forward()[0].detach()) / first


@pytest.mark.parametrize("name", names())
class TestProblems:
    def test_rosenbrocks_valley(self, name):
        model = Residuals(torch.tensor([1.5, 1.5]), rosenbrock)
        assert descend(name, model, RATES.get(name, 0.1), 60 if name in QUICK else 300) < 1e-2

    def test_a_condition_number_of_ten_thousand(self, name):
        rate = 1.0 if name in ("sgd", "langevin") else max(RATES.get(name, 0.1), 0.1)
        steps = 60 if name in QUICK else 300
        left = descend(name, Residuals(torch.ones(20), ill_conditioned), rate, steps)
        assert left < (1e-4 if name in SECOND_ORDER else 2e-2)


@pytest.fixture
def data():
    return torch.randn(24, 3), torch.randint(3, (24,))


def closure_of(model, x, y):
    def forward():
        logits = model(x)
        return F.cross_entropy(logits, y), logits

    return forward


RATE = 0.02
# In bfloat16 a step below 1/256 of a parameter is none.
COARSE = {
    "ekfac": 1.0,
    "gauss-newton": 1.0,
    "kfac": 1.0,
    "natural-gradient": 1.0,
    "newton": 1.0,
    "newton-cg": 1.0,
    "sgd": 0.3,
    "langevin": 0.3,
    "radam": 0.5,
}


@pytest.mark.parametrize("name", names())
class TestPrecision:
    def test_autocast_with_bfloat16(self, name, data):
        model, (x, y) = mlp().float(), data
        optimizer = made(name, model, "categorical", lr=RATES.get(name, RATE))

        def forward():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(x.float()).float()
            return F.cross_entropy(logits, y), logits

        losses = [train_step(optimizer, forward) for _ in range(12)]
        assert losses[-1] < losses[0]
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())

    def test_parameters_in_bfloat16(self, name, data):
        model, (x, y) = mlp().bfloat16(), data
        optimizer = made(name, model, "categorical", lr=COARSE.get(name, 0.05))
        forward = closure_of(model, x.bfloat16(), y)
        losses = [train_step(optimizer, forward) for _ in range(12)]
        assert min(losses[-3:]) < losses[0]
        assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", GRADIENT)
class TestScaler:
    def test_a_scaled_loss_makes_the_same_steps(self, name, data):
        """Scales are powers of two: dividing by them loses nothing."""
        ends = []
        for scale in (None, 2.0**10):
            torch.manual_seed(0)
            model, (x, y) = mlp().float(), data
            optimizer = made(name, model, "categorical", lr=RATE)
            scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
            for _ in range(4):
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(model(x.float()), y)).backward()
                scaler.step(optimizer)
                scaler.update()
            ends.append(snapshot(model))
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)

    def test_an_overflow_is_skipped(self, name, data):
        model, (x, y) = mlp().float(), data
        optimizer = made(name, model, "categorical", lr=RATE)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        start = snapshot(model)
        for overflows in (True, False, False):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x.float()), y)).backward()
            if overflows:
                model[0].weight.grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(snapshot(model), start) == overflows or name == "soap"
        assert not torch.equal(snapshot(model), start)
        assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", names())
class TestTensors:
    def test_memory_layout_does_not_matter(self, name, data):
        x, y = data
        model = nn.Sequential(
            nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)
        )
        twin = copy.deepcopy(model)
        twin[1].weight = nn.Parameter(
            model[1].weight.detach().transpose(0, 1).contiguous().transpose(0, 1)
        )
        twin[4].weight = nn.Parameter(model[4].weight.detach().t().contiguous().t())
        assert not twin[4].weight.is_contiguous()
        # The layouts' products differ in their last digits on some processors. Conjugate gradients
        # enlarge that with every step. SOAP's moments of the first gradients have a null space, of
        # three classes' gradients it is a plane: rounding chooses the basis there, and Adam's steps
        # in it depend on that basis from the third gradient on.
        steps = 2 if name == "soap" else 5
        for net in (model, twin):
            optimizer = made(name, net, "categorical", lr=RATES.get(name, RATE))
            for _ in range(steps):
                train_step(optimizer, closure_of(net, x, y))
        rtol = 1e-5 if name == "newton-cg" else 1e-6
        torch.testing.assert_close(snapshot(model), snapshot(twin), rtol=rtol, atol=1e-8)

    def test_every_number_of_dimensions(self, name):
        class Many(nn.Module):
            def __init__(self):
                super().__init__()
                shapes = [(), (3,), (2, 3), (2, 1, 2), (2, 1, 1, 2), (2, 1, 2, 1, 1)]
                if name != "adafactor":  # torch's divides by the number of entries
                    shapes += [(0,), (2, 0)]
                self.all = nn.ParameterList(torch.randn(s) for s in shapes)

            def forward(self, _):
                return torch.cat([p.flatten() for p in self.all]).unsqueeze(0)

        rate = 0.1 if name in ("radam", "sgd", "langevin") else RATES.get(name, 0.1)
        steps = 60 if name in QUICK | SECOND_ORDER else 250
        assert descend(name, Many(), rate, steps) < 0.6

    def test_gradients_of_zero_and_none(self, name, data):
        class Muted(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.idle = mlp(), nn.Linear(2, 2)

            def forward(self, x):
                return 0 * self.body(x)

        model, (x, y) = Muted(), data
        kept = snapshot(model.idle)
        optimizer = made(name, model, "categorical", lr=RATES.get(name, RATE))
        for _ in range(3):
            train_step(optimizer, closure_of(model, x, y))
        assert all(torch.isfinite(p).all() for p in model.parameters())
        assert torch.equal(snapshot(model.idle), kept)

    def test_complex_numbers(self, name):
        """Supported, or refused by name before anything moves."""
        z = nn.Parameter(torch.tensor([1.0 + 2.0j, -0.5j]))

        class Complex(nn.Module):
            def __init__(self):
                super().__init__()
                self.z = z

            def forward(self, _):
                return torch.view_as_real(self.z).reshape(1, -1)

        if name == "adafactor" or name in READS - {"loss-flow"}:
            refusals = (ConfigurationError, RuntimeError, ValueError)
            with pytest.raises(refusals, match=r"(?i)complex"):
                descend(name, Complex(), RATES.get(name, 0.1), 100)
            assert torch.equal(z, torch.tensor([1.0 + 2.0j, -0.5j]))
            return
        rate = 0.1 if name in ("radam", "sgd", "langevin") else RATES.get(name, 0.1)
        assert descend(name, Complex(), rate, 250) < 0.6


@pytest.mark.usefixtures("young_heap")
@pytest.mark.parametrize("name", names())
def test_memory_does_not_grow(name):
    model = nn.Linear(3, 3)
    x, y = torch.randn(8, 3), torch.randint(3, (8,))
    optimizer = made(name, model, "categorical", lr=1e-3)

    def grown(steps):
        """Tensors and bytes more than before."""
        before = tensors_alive(), resident()
        for _ in range(steps):
            train_step(optimizer, closure_of(model, x, y))
        gc.collect()
        return tensors_alive() - before[0], resident() - before[1]

    grown(50)
    # A leak of 5 kB a step shows in every window; an allocator that takes one more arena, in one.
    assert any(tensors <= 0 and size < 7.5e5 for tensors, size in (grown(150) for _ in range(8)))


def resident():
    """Bytes in memory; 0 where /proc does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0


def tensors_alive():
    return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())


# SOAP's first bases are eigenvectors of matrices of low rank: rounding chooses among these.
@pytest.mark.parametrize("name", [n for n in names() if n != "soap"])
def test_accumulated_gradients_are_those_of_the_whole_batch(name, data):
    x, y = data
    ends = []
    for pieces in ([slice(0, 24)], [slice(0, 12), slice(12, 24)]):
        torch.manual_seed(0)
        model = mlp()
        options = {"damping": 0.1, "momentum": 0.9} if name in ("kfac", "ekfac") else {}
        optimizer = made(name, model, "categorical", lr=RATE, **options)
        if isinstance(optimizer, FunctionOptimizer) and not options:
            pytest.skip("it evaluates the loss by itself")
        for _ in range(4):
            optimizer.zero_grad()
            for piece in pieces:
                loss = F.cross_entropy(model(x[piece]), y[piece]) / len(pieces)
                loss.backward(create_graph=getattr(optimizer, "needs_graph", False))
            optimizer.step()
        ends.append(snapshot(model))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-7, atol=1e-9)


# Torch's Adafactor reads the root mean square of its step.
@pytest.mark.parametrize("name", [n for n in names() if n not in {*READS, "adafactor"}])
def test_nothing_is_read_from_the_device(name):
    """On ``meta`` there is nothing to read; K-FAC's plain loop is tested where its closures are."""
    model = nn.Sequential(nn.Linear(3, 4, device="meta"), nn.ReLU(), nn.Linear(4, 2, device="meta"))
    x, y = torch.randn(5, 3, device="meta"), torch.zeros(5, dtype=torch.long, device="meta")
    optimizer = made(name, model, "categorical")
    for _ in range(12):  # past an interval of ten
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward(create_graph=getattr(optimizer, "needs_graph", False))
        optimizer.step()


@pytest.mark.parametrize("name", [n for n in names() if n not in READS])
def test_sparse_gradients_are_refused(name):
    """Torch's Adagrad, SGD and sparse Adam have steps of their own for them."""
    if name in ("adagrad", "sgd"):
        pytest.skip("it takes them")
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = made(name, table, "categorical")
    kept = snapshot(table)
    loss = table(torch.tensor([1, 2])).square().sum()
    with pytest.raises((ConfigurationError, RuntimeError), match=r"(?i)sparse|dense"):  # noqa: PT012
        loss.backward(create_graph=getattr(optimizer, "needs_graph", False))
        optimizer.step()
    assert torch.equal(snapshot(table), kept)


@pytest.mark.parametrize("name", [n for n in names() if takes(n, "maximize")])
def test_maximising_is_minimising_the_negative(name, data):
    x, y = data
    ends = []
    for sign in (1, -1):
        torch.manual_seed(0)
        model = mlp()
        optimizer = made(name, model, "categorical", lr=RATE, maximize=sign < 0)

        def forward(model=model, sign=sign):
            logits = model(x)
            return sign * F.cross_entropy(logits, y), logits

        for _ in range(4):
            train_step(optimizer, forward)
        ends.append(snapshot(model))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in names() if takes(n, "foreach")])
def test_one_by_one_is_all_at_once(name, data):
    ends = []
    for foreach in (True, False):
        torch.manual_seed(0)
        model = mlp()
        optimizer = made(name, model, "categorical", lr=RATE, foreach=foreach)
        for _ in range(4):
            train_step(optimizer, closure_of(model, *data))
        ends.append(snapshot(model))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-10, atol=1e-12)
