"""Sophia's two estimates over one clipped step."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.curvature import Fisher
from npg.errors import ConfigurationError
from npg.optim import SophiaG, SophiaH, create
from tests.npg.optim.helpers import snapshot
from tests.npg.oracles import TIGHT, mlp

peers = pytest.importorskip("pytorch_optimizer")


def classification(model, x, y):
    return F.cross_entropy(model(x), y)


@pytest.fixture
def data():
    return torch.randn(30, 3), torch.randint(3, (30,))


class TestHutchinson:
    @pytest.mark.parametrize(("decay", "interval"), [(0.0, 1), (0.1, 1), (0.1, 4)])
    def test_is_the_peers(self, decay, interval):
        """Theirs clips m / h at p: the same for γ = p and their rate η / γ."""
        gamma, lr = 0.3, 0.02

        def separable(parameters):
            return sum((p.pow(4) / 4 + p.square() + p).sum() for p in parameters)

        ours = [nn.Parameter(torch.randn(s)) for s in ((), (3,), (2, 3, 2))]
        theirs = [nn.Parameter(p.detach().clone()) for p in ours]
        one = SophiaH(ours, lr, (0.9, 0.95), gamma, decay, hessian_interval=interval, eps=1e-9)
        two = peers.SophiaH(
            theirs,
            lr / gamma,
            (0.9, 0.95),
            decay * gamma,  # decoupled from the rate's unit, not from the rate
            p=gamma,
            update_period=interval,
            eps=1e-9 / gamma,
        )
        for t in range(20):
            one.step(lambda: separable(ours))
            hessian = [(3 * p.square() + 2).detach() for p in theirs]
            two.zero_grad()
            separable(theirs).backward()
            two.step(hessian=hessian) if t % interval == 0 else two.step()
            for p, q in zip(ours, theirs, strict=True):
                torch.testing.assert_close(p, q, **TIGHT)

    def test_maximising_sees_the_curvature_of_the_negative(self):
        p, q = (nn.Parameter(torch.tensor([1.0, -2.0, 0.5])) for _ in range(2))
        up = SophiaH([p], 0.1, gamma=1.0, maximize=True, hessian_interval=1)
        down = SophiaH([q], 0.1, gamma=1.0, hessian_interval=1)
        for _ in range(5):
            up.step(lambda: -(q.detach() * 0 + p).pow(4).sum())
            down.step(lambda: q.pow(4).sum())
            assert torch.equal(p, q)

    def test_negative_curvature_gives_the_sign(self):
        p = nn.Parameter(torch.tensor([1.0, -3.0]))
        SophiaH([p], 0.1, weight_decay=0.0).step(lambda: -p.square().sum())
        assert p.tolist() == pytest.approx([1.1, -3.1])


class TestBartlett:
    def test_is_the_published_recursion(self, data):
        """Labels from the optimizer's own generator, by hand, in a loop of one's own."""
        x, y = data
        lr, first, second, gamma, decay, interval = 0.02, 0.9, 0.95, 0.05, 0.1, 3
        torch.manual_seed(0)
        model = mlp()
        optimizer = SophiaG(
            model,
            lr,
            (first, second),
            gamma,
            decay,
            likelihood="categorical",
            hessian_interval=interval,
            seed=5,
        )
        torch.manual_seed(0)
        twin = mlp()
        generator = torch.Generator().manual_seed(5)
        parameters = list(twin.parameters())
        m, h = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        for t in range(8):
            optimizer.zero_grad()
            classification(model, x, y).backward()
            optimizer.step()

            logits = twin(x)
            if t % interval == 0:
                labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
                drawn = F.cross_entropy(logits, labels)
                mean = torch.autograd.grad(drawn, parameters, retain_graph=True)
                h = [second * a + (1 - second) * 30 * b**2 for a, b in zip(h, mean, strict=True)]
            gradients = torch.autograd.grad(F.cross_entropy(logits, y), parameters)
            with torch.no_grad():
                for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                    m[i] = first * m[i] + (1 - first) * g
                    step = (m[i] / (gamma * h[i]).clamp(min=1e-12)).clamp(-1, 1)
                    p.mul_(1 - lr * decay).sub_(lr * step)
            torch.testing.assert_close(snapshot(model), snapshot(twin), rtol=1e-9, atol=1e-12)

    def test_its_curvature_is_the_fisher_diagonal(self, data):
        """Not the squared training gradient, a bug seen in the wild."""
        model = mlp()
        wanted = Fisher(model, lambda: torch.distributions.Categorical(logits=model(data[0])))
        optimizer = SophiaG(model, 0.0, (0.9, 0.998), likelihood="categorical", hessian_interval=1)
        for _ in range(2000):
            optimizer.zero_grad()
            classification(model, *data).backward()
            optimizer.step()
        found = torch.cat([optimizer.state[p]["curvature"].flatten() for p in model.parameters()])
        found = found / (1 - 0.998**2000)
        # B ĝ² is nearly χ²: its deviation is √2 of its mean, over some 1000 independent draws.
        torch.testing.assert_close(found, wanted.diagonal(), rtol=0.2, atol=1e-5)

    def test_a_batch_twice_is_no_other_batch(self, data):
        """γ does not depend on the batch size: in the mean, the curvature does not."""
        x, y = data
        means = []
        for times in (1, 4):
            torch.manual_seed(0)
            model = mlp()
            optimizer = SophiaG(
                model, 0.0, (0.9, 0.996), likelihood="categorical", hessian_interval=1
            )
            for _ in range(1000):
                optimizer.zero_grad()
                classification(model, x.repeat(times, 1), y.repeat(times)).backward()
                optimizer.step()
            means.append(
                sum(float(optimizer.state[p]["curvature"].sum()) for p in model.parameters())
            )
        assert means[1] == pytest.approx(means[0], rel=0.1)

    def test_observed_predictions(self, data):
        x, y = data
        ends = []
        for observed in (False, True):
            torch.manual_seed(0)
            model = mlp()
            likelihood = None if observed else "categorical"
            optimizer = SophiaG(model, 0.02, likelihood=likelihood, hessian_interval=2)
            for _ in range(5):
                optimizer.zero_grad()
                logits = model(x)
                if observed:
                    optimizer.observe(torch.distributions.Categorical(logits=logits))
                F.cross_entropy(logits, y).backward()
                optimizer.step()
            ends.append(snapshot(model))
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize(
        ("options", "message"),
        [({}, "likelihood="), ({"likelihood": "categorical"}, "in training mode")],
    )
    def test_nothing_measured_is_an_error_and_moves_nothing(self, data, options, message):
        model = mlp().eval()
        optimizer = SophiaG(model, **options)
        start = snapshot(model)
        classification(model, *data).backward()
        with pytest.raises(ConfigurationError, match=message):
            optimizer.step()
        assert torch.equal(snapshot(model), start)

    def test_wants_the_module(self):
        with pytest.raises(ConfigurationError, match="must be the module itself"):
            SophiaG(list(mlp().parameters()))
        with pytest.raises(ConfigurationError, match="hessian_interval"):
            SophiaG(mlp(), hessian_interval=0)

    def test_a_closure_of_torchs_kind(self, data):
        ends = []
        for closed in (False, True):
            torch.manual_seed(0)
            model = mlp()
            optimizer = SophiaG(model, 0.02, likelihood="categorical")

            def closure(optimizer=optimizer, model=model):
                optimizer.zero_grad()
                loss = classification(model, *data)
                loss.backward()
                return loss

            for _ in range(3):
                if closed:
                    optimizer.step(closure)
                else:
                    closure()
                    optimizer.step()
            ends.append(snapshot(model))
        assert torch.equal(ends[0], ends[1])


class TestBoth:
    def test_the_share_that_is_not_clipped(self):
        p = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
        optimizer = SophiaH([p], 1e-9, (0.0, 0.0), 1.0, 0.0, hessian_interval=1)
        assert math.isnan(optimizer.win_rate())
        optimizer.step(lambda: p[0].square() + p[1].pow(4) + p[2] - p[2].square())
        # m / h: 2/2 = 1 is clipped (to itself), 4/12 is not, the third is concave
        assert optimizer.win_rate() == pytest.approx(1 / 3)

    @pytest.mark.parametrize("name", ["sophia-g", "sophia-h"])
    @pytest.mark.parametrize(
        "settings", [{"gamma": -1.0}, {"eps": math.nan}, {"betas": (0.9, 1.0)}]
    )
    def test_bad_settings(self, name, settings):
        (wrong,) = settings
        with pytest.raises(ConfigurationError, match=f"{wrong} must be in"):
            create(name, mlp(), **settings)
