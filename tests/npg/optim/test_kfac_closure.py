"""K-FAC with closures: the exact step and its damping, against dense matrices of torch.func."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import EKFAC, KFAC
from npg.steps import LevenbergMarquardt
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.optim.kfac_oracle import DenseKFAC, damped_blocks
from tests.npg.oracles import (
    TIGHT,
    categorical_fisher,
    flat,
    functional_jacobian,
    jacobian_by_rows,
    mlp,
    unflatten,
)


@pytest.fixture
def batches():
    return [(torch.randn(12, 3), torch.randint(3, (12,))) for _ in range(6)]


MODELS = {
    "chain": lambda: (mlp(), torch.randn(9, 3)),
    "layer norm": lambda: (
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)),
        torch.randn(9, 3),
    ),
    "convolution": lambda: (
        nn.Sequential(nn.Conv1d(1, 2, 2), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(8, 3)),
        torch.randn(9, 1, 5),
    ),
}


class DenseExact:
    """The step of least V w: w = −(Vᵀ(F + D + λI)V)⁻¹ Vᵀg for V = (F̂⁻¹g, last step)."""

    def __init__(self, model, decay=(0.0,) * 6, lr=(1.0,) * 6):
        self.model = model
        sizes = [p.numel() for p in model.parameters()]
        self.decay, self.lr = (
            torch.cat([torch.full((n,), v) for n, v in zip(sizes, values, strict=True)])
            for values in (decay, lr)
        )
        self.kfac = DenseKFAC(model, [1.0] * 6)
        self.last = None

    def loss(self, x, y, vector):
        logits = torch.func.functional_call(self.model, unflatten(vector, self.model), (x,))
        return float(F.cross_entropy(logits, y) + (self.decay * vector**2).sum() / 2)

    def step(self, x, y, damping, candidates=None):
        """Returns the step, and what the model without λ says of it.

        Of several dampings of the factors it takes the one with which the damped model falls most.
        """
        theta = snapshot(self.model)
        logits = self.model(x)
        gradient = flat(torch.autograd.grad(F.cross_entropy(logits, y), self.kfac.parameters))
        gradient = gradient + self.decay * theta
        matrix = categorical_fisher(functional_jacobian(self.model, x), logits.detach())
        matrix = matrix + torch.diag(self.decay)
        self.kfac.statistics(x)
        damped = matrix + damping * torch.eye(len(matrix))
        least = math.inf
        for candidate in candidates or [damping]:
            self.kfac.blocks = damped_blocks(self.kfac.moments, candidate + float(self.decay.max()))
            pieces = list(unflatten(gradient, self.model).values())
            natural = flat(self.kfac.natural(pieces))
            v = torch.stack([natural] if self.last is None else [natural, self.last], 1)
            weights = torch.linalg.solve(v.T @ damped @ v, -v.T @ gradient)
            value = float(gradient @ v @ weights / 2)  # the damped model's at its minimum
            if value < least:
                least, best, self.weights, self.factor_damping = value, v, weights, candidate
        step = self.lr * (best @ self.weights)
        self.last = step
        return step.detach(), float(gradient @ step + step @ matrix @ step / 2)

    def move(self, step):
        with torch.no_grad():
            for name, piece in unflatten(step, self.model).items():
                self.model.get_parameter(name).add_(piece)


def grouped(model, decay, lr=(1.0,) * 6):
    return [
        {"params": [p], "weight_decay": d, "lr": r}
        for p, d, r in zip(model.parameters(), decay, lr, strict=True)
    ]


def exactly(model, **options):
    settings = {
        "statistics_interval": 1,
        "inverse_interval": 1,
        "fisher": "exact",
        **options,
    }
    return KFAC(model, likelihood="categorical", **settings)


DECAYS = {
    "none": (0.0,) * 6,
    "L2": (0.05,) * 6,
    "L2 per group": (0.1, 0.0, 0.02, 0.0, 0.3, 0.01),
}


class TestExactStep:
    @pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS.keys())
    @pytest.mark.parametrize("lr", [(1.0,) * 6, (0.7, 0.7, 0.5, 0.5, 1.0, 1.0)])
    def test_minimises_the_quadratic_model(self, decay, lr, batches):
        """A fixed damping: no second evaluation, no rejection."""
        model = mlp()
        twin = copy.deepcopy(model)
        optimizer = exactly(
            model, momentum="quadratic", damping=0.2, parameters=grouped(model, decay, lr)
        )
        dense = DenseExact(twin, decay, lr)
        for x, y in batches:
            report = optimizer.step(objective(model, x, y))
            step, _ = dense.step(x, y, 0.2)
            dense.move(step)
            assert report.accepted
            assert math.isnan(report.loss_after)
            assert report.step_length == pytest.approx(-float(dense.weights[0]), rel=1e-8)
            torch.testing.assert_close(snapshot(model), snapshot(twin), **TIGHT)

    @pytest.mark.parametrize("kind", MODELS)
    def test_the_model_of_the_first_samples(self, kind):
        """The gradient is the whole batch's, the curvature along the directions is theirs."""
        model, x = MODELS[kind]()
        y = torch.randint(3, (len(x),))
        twin = copy.deepcopy(model)
        optimizer = exactly(model, momentum="quadratic", damping=0.2, quadratic_samples=4)
        start = snapshot(model)
        report = optimizer.step(objective(model, x, y))
        direction = (snapshot(model) - start) / report.step_length
        gradient = flat(torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters())))
        few = x[:4]
        matrix = categorical_fisher(functional_jacobian(twin, few), twin(few).detach())
        curvature = direction @ (matrix @ direction + 0.2 * direction)
        assert report.step_length == pytest.approx(-float(gradient @ direction / curvature))

    @pytest.mark.parametrize("decay", DECAYS.values(), ids=DECAYS.keys())
    @pytest.mark.parametrize("lr", [(1.0,) * 6, (0.7,) * 6, (0.1, 0.1, 2.0, 2.0, 1.0, 1.0)])
    def test_damping_follows_levenberg_and_marquardt(self, decay, lr, batches):
        model = mlp()
        twin = copy.deepcopy(model)
        rule = LevenbergMarquardt(0.01, factor=1.5, interval=2)
        optimizer = exactly(model, damping=rule, parameters=grouped(model, decay, lr))
        dense = DenseExact(twin, decay, lr)
        damping, rejected, ratios = 0.01, 0, []
        dense.factor_damping = 0.01
        chosen, stood = set(), False
        for i, (x, y) in enumerate(batches * 2):
            before = dense.loss(x, y, snapshot(twin))
            present = dense.factor_damping
            candidates = [present] if stood else [present, present / 10, present * 10]
            step, predicted = dense.step(x, y, damping, candidates)
            stood = not stood and dense.factor_damping == present  # not asked again at once
            report = optimizer.step(objective(model, x, y))
            assert report.damping == pytest.approx(damping)
            assert optimizer.extra["factor_damping"] == pytest.approx(dense.factor_damping)
            chosen.add(dense.factor_damping)
            dense.move(step)
            if i % 2:
                change = dense.loss(x, y, snapshot(twin)) - before
                ratios.append(change / predicted)
                assert report.reduction_ratio == pytest.approx(ratios[-1], rel=1e-6)
                if ratios[-1] < 0.25 or change > 0 or predicted > 0:
                    damping *= 1.5**2
                elif ratios[-1] > 0.75:
                    damping /= 1.5**2
                if change > 0:
                    assert not report.accepted
                    dense.move(-step)
                    dense.last, rejected = None, rejected + 1
            torch.testing.assert_close(snapshot(model), snapshot(twin), **TIGHT)
        assert optimizer.extra["rejected"] == rejected
        assert len(chosen) > 1
        assert rule.damping == 0.01, "the user's own object stays as it was"

    def test_decoupled_decay_shrinks_beside_it(self, batches):
        x, y = batches[0]
        model = mlp()
        twin = copy.deepcopy(model)
        rule = LevenbergMarquardt(0.2)
        optimizer = exactly(model, damping=rule, weight_decay=0.01, decoupled_weight_decay=True)
        start = snapshot(model)
        report = optimizer.step(objective(model, x, y))
        dense = DenseExact(twin)
        step, _ = dense.step(x, y, 0.2)
        torch.testing.assert_close(snapshot(model), 0.99 * start + step, **TIGHT)
        # The ratio is that of the whole move.
        moved = snapshot(model) - start
        logits = twin(x)
        gradient = flat(torch.autograd.grad(F.cross_entropy(logits, y), dense.kfac.parameters))
        matrix = categorical_fisher(functional_jacobian(twin, x), logits.detach())
        predicted = gradient @ moved + moved @ matrix @ moved / 2
        change = report.loss_after - report.loss
        assert report.reduction_ratio == pytest.approx(change / float(predicted), rel=1e-8)


class TestNotFinite:
    @pytest.mark.parametrize("checked", [False, True], ids=["unchecked", "checked"])
    def test_products_of_finite_gradients(self, checked, batches, monkeypatch):
        """F̂⁻¹g may overflow where g does not; most steps are not evaluated a second time."""
        x, y = batches[0]
        model = mlp()
        rule = LevenbergMarquardt(0.1, interval=1 if checked else 100)
        optimizer = exactly(model, damping=rule)
        optimizer.step(objective(model, x, y))
        start, steps = snapshot(model), optimizer.extra["steps"]
        natural = optimizer.preconditioner.flat

        def overflows(gradients, out=None):
            solved = natural(gradients, out)
            solved[-len(model[2].bias) :] *= math.inf
            return solved

        monkeypatch.setattr(optimizer.preconditioner, "flat", overflows)
        report = optimizer.step(objective(model, x, y))
        assert not report.accepted
        assert report.reason == "step is not finite"
        assert torch.equal(snapshot(model), start)
        assert (optimizer.skipped, optimizer.extra["steps"]) == (1, steps + 1)
        monkeypatch.undo()
        assert optimizer.step(objective(model, x, y)).loss_after != 0
        assert not torch.equal(snapshot(model), start)


class TestFixedMomentum:
    @pytest.mark.parametrize("kind", MODELS)
    @pytest.mark.parametrize("decoupled", [False, True])
    def test_the_ratio_is_that_of_the_step(self, kind, decoupled):
        """μ fixed and λ adapted, on models whose Jacobian comes from the graph as well."""
        model, x = MODELS[kind]()
        y = torch.randint(3, (9,))
        decay = 0.05
        optimizer = exactly(
            model, momentum=0.5, damping=LevenbergMarquardt(0.3), weight_decay=decay,
            decoupled_weight_decay=decoupled, kl_clip=1e-2,
        )  # fmt: skip
        l2 = 0.0 if decoupled else decay
        for _ in range(3):
            start = snapshot(model)
            logits = model(x)
            parameters = list(model.parameters())
            loss = F.cross_entropy(logits, y)
            gradient = flat(torch.autograd.grad(loss, parameters, retain_graph=True)) + l2 * start
            fisher = categorical_fisher(jacobian_by_rows(logits, parameters), logits.detach())
            report = optimizer.step(objective(model, x, y))
            step = snapshot(model) - start
            predicted = gradient @ step + step @ fisher @ step / 2 + l2 * step @ step / 2
            change = float((F.cross_entropy(model(x), y) - loss).detach())
            change += l2 / 2 * float(snapshot(model) @ snapshot(model) - start @ start)
            assert report.accepted
            assert report.reason == "fixed step"
            assert report.reduction_ratio == pytest.approx(change / float(predicted), rel=1e-6)


class TestClosures:
    @pytest.mark.parametrize("optimizer", [KFAC, EKFAC])
    def test_a_distribution_says_it_all(self, optimizer, batches):
        model = mlp()
        twin = copy.deepcopy(model)
        named = optimizer(model, likelihood="categorical", fisher="exact")
        told = optimizer(twin, fisher="exact")
        for x, y in batches:

            def closure(x=x, y=y):
                prediction = Categorical(logits=twin[4](twin[:4](x)))
                return -prediction.log_prob(y).mean(), prediction

            losses = float(named.step(objective(model, x, y))), float(told.step(closure))
            assert losses[0] == pytest.approx(losses[1], rel=1e-12)
        torch.testing.assert_close(snapshot(model), snapshot(twin), **TIGHT)

    def test_other_parameters_keep_their_gradients(self, batches):
        """Of the actor's optimizer the critic's gradients are none of its business."""
        x, y = batches[0]
        model = mlp()
        model[0].weight.grad = torch.ones(4, 3)
        optimizer = exactly(model, parameters=model[4].parameters())
        optimizer.step(objective(model, x, y))
        assert torch.equal(model[0].weight.grad, torch.ones(4, 3))
        assert model[2].weight.grad is None

    def test_gradients_of_before_do_not_count(self, batches):
        x, y = batches[0]
        model = mlp()
        twin = copy.deepcopy(model)
        for p in twin.parameters():
            p.grad = torch.randn_like(p)
        for each in (model, twin):
            exactly(each).step(objective(each, x, y))
        assert torch.equal(snapshot(model), snapshot(twin))

    @pytest.mark.parametrize("damping", [0.1, None])
    @pytest.mark.parametrize(
        "kind", ["loss alone", "backward", "kept backward", "freed", "three", "vector", "detached"]
    )
    def test_others_are_told_what_to_change(self, kind, damping, batches):
        x, y = batches[0]
        model = mlp()

        def closure():
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            if kind == "backward":
                loss.backward()
            if kind == "kept backward":
                loss.backward(retain_graph=True)
            if kind == "freed":
                torch.autograd.grad(loss, list(model.parameters()))
            return {
                "loss alone": loss,
                "three": (loss, logits, 1),
                "vector": (F.cross_entropy(logits, y, reduction="none"), logits),
                "detached": (loss.detach(), logits),
            }.get(kind, (loss, logits))

        start = snapshot(model)
        optimizer = exactly(model, damping=damping)
        for p in model.parameters():  # stale ones
            p.grad = torch.ones_like(p)
        with pytest.raises(ConfigurationError, match=r"KFAC: .*return \(loss, prediction\)"):
            optimizer.step(closure)
        assert torch.equal(snapshot(model), start)

    def test_the_plain_loop_cannot_evaluate_again(self, batches):
        x, y = batches[0]
        model = mlp()
        F.cross_entropy(model(x), y).backward()
        for options in ({"momentum": "quadratic"}, {"damping": LevenbergMarquardt()}):
            with pytest.raises(ConfigurationError, match="pass a closure"):
                exactly(model, **options).step()
