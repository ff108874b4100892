"""The natural-gradient step: dense (F + λI)⁻¹ g, for every kind of Fisher matrix and of group."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import NaturalGradient
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import (
    TIGHT,
    categorical_fisher,
    categorical_kl,
    classifier,
    flat,
    jacobian_by_rows,
    mlp,
    trained,
)

EXACT = {"cg_max_steps": 300, "cg_tolerance": 1e-13}


def dense(model, x, y):
    """Gradient and Fisher matrix, without the library."""
    logits = model(x)
    gradient = torch.autograd.grad(F.cross_entropy(logits, y), trained(model))
    fisher = categorical_fisher(jacobian_by_rows(model(x), trained(model)), logits.detach())
    return flat(gradient), fisher


class TestOneStep:
    @pytest.mark.parametrize("curvature", ["fisher-cg", "fisher-dense"])
    @pytest.mark.parametrize("damping", [0.1, 1e-3])
    def test_plain_natural_gradient(self, curvature, damping):
        model, x, y = classifier()
        gradient, fisher = dense(model, x, y)
        start = snapshot(model)
        optimizer = NaturalGradient(
            model, lr=0.3, target_kl=None, damping=damping, curvature=curvature,
            likelihood="categorical", **EXACT,
        )  # fmt: skip
        report = optimizer.step(objective(model, x, y))
        step = torch.linalg.solve(fisher + damping * torch.eye(59), gradient)
        torch.testing.assert_close(snapshot(model), start - 0.3 * step, rtol=1e-8, atol=1e-9)
        assert report.accepted
        assert report.step_length == 1.0
        assert report.damping == damping

    @pytest.mark.parametrize("curvature", ["fisher-cg", "fisher-dense"])
    @pytest.mark.parametrize("damping", [10.0, 0.1, 1e-3])
    def test_the_first_trial_is_on_the_boundary(self, curvature, damping):
        model, x, y = classifier()
        gradient, fisher = dense(model, x, y)
        start = snapshot(model)
        optimizer = NaturalGradient(
            model, target_kl=0.02, damping=damping, curvature=curvature, line_search=False,
            likelihood="categorical", **EXACT,
        )  # fmt: skip
        report = optimizer.step(objective(model, x, y))
        step = snapshot(model) - start
        assert float(0.5 * step @ fisher @ step) == pytest.approx(0.02, rel=1e-8)
        direction = torch.linalg.solve(fisher + damping * torch.eye(59), gradient)
        length = math.sqrt(0.04 / float(direction @ fisher @ direction))
        torch.testing.assert_close(step, -length * direction, rtol=1e-7, atol=1e-9)
        assert report.step_length == pytest.approx(length, rel=1e-8)
        assert report.fraction == 1.0

    @pytest.mark.parametrize("curvature", ["fisher-cg", "fisher-dense"])
    @pytest.mark.parametrize("damping", [10.0, 1e-3])
    def test_the_damped_norm_starts_inside(self, curvature, damping):
        model, x, y = classifier()
        gradient, fisher = dense(model, x, y)
        start = snapshot(model)
        optimizer = NaturalGradient(
            model, target_kl=0.02, damping=damping, curvature=curvature, line_search=False,
            step_norm="damped", likelihood="categorical", **EXACT,
        )  # fmt: skip
        report = optimizer.step(objective(model, x, y))
        damped = fisher + damping * torch.eye(59)
        direction = torch.linalg.solve(damped, gradient)
        length = math.sqrt(0.04 / float(direction @ damped @ direction))
        step = snapshot(model) - start
        torch.testing.assert_close(step, -length * direction, rtol=1e-7, atol=1e-9)
        assert report.step_length == pytest.approx(length, rel=1e-8)
        assert float(0.5 * step @ fisher @ step) < 0.02

    def test_the_report(self):
        model, x, y = classifier()
        gradient, _ = dense(model, x, y)
        with torch.no_grad():
            old, before = model(x), F.cross_entropy(model(x), y)
        optimizer = NaturalGradient(model, likelihood="categorical")
        report = optimizer.step(objective(model, x, y))
        with torch.no_grad():
            new, after = model(x), F.cross_entropy(model(x), y)
        assert report.loss == float(report) == pytest.approx(float(before), rel=1e-12)
        assert report.loss_after == pytest.approx(float(after), rel=1e-12)
        assert report.loss_after < report.loss
        assert report.kl == pytest.approx(float(categorical_kl(old, new)), rel=1e-9)
        assert 0 < report.kl <= 0.01
        assert report.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-12)
        assert 1 <= report.cg_iterations <= 15
        assert 0 <= report.cg_residual <= 1e-5 or report.cg_iterations == 15

    def test_conjugate_gradient_is_bounded(self):
        model, x, y = classifier()
        optimizer = NaturalGradient(
            model, likelihood="categorical", damping=1e-4, cg_max_steps=3, cg_tolerance=0
        )
        report = optimizer.step(objective(model, x, y))
        assert report.cg_iterations == 3
        assert report.reason == "iteration limit"

    def test_mse_is_gauss_newton(self):
        """One undamped step of a linear model is the least-squares solution."""
        model, x, y = nn.Linear(3, 2), torch.randn(20, 3), torch.randn(20, 2)
        optimizer = NaturalGradient(
            model, target_kl=None, damping=0.0, likelihood="mse", curvature="fisher-dense"
        )

        def closure():
            output = model(x)
            return F.mse_loss(output, y), output

        optimizer.step(closure)
        inputs = torch.cat([x, torch.ones(20, 1)], 1)
        solution = torch.linalg.lstsq(inputs, y).solution.T
        found = torch.cat([model.weight, model.bias.unsqueeze(1)], 1)
        torch.testing.assert_close(found.detach(), solution, rtol=1e-8, atol=1e-9)

    def test_a_callable_likelihood(self):
        model, x, y = nn.Linear(3, 2), torch.randn(20, 3), torch.randn(20)

        def read(output):
            return Normal(output[:, 0], F.softplus(output[:, 1]))

        def closure():
            output = model(x)
            return -read(output).log_prob(y).mean(), output

        one = copy.deepcopy(model)
        report = NaturalGradient(model, likelihood=read).step(closure)

        def direct():
            prediction = read(one(x))
            return -prediction.log_prob(y).mean(), prediction

        assert report == NaturalGradient(one).step(direct)
        assert torch.equal(snapshot(one), snapshot(model))


class TestWeights:
    def test_zeros_drop_rows_from_fisher_and_kl(self):
        model, x, y = classifier()
        other = copy.deepcopy(model)
        w = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
        keep = w > 0

        def masked():
            logits = model(x)
            losses = F.cross_entropy(logits, y, reduction="none")
            return (losses * w).sum() / w.sum(), logits

        one = NaturalGradient(model, likelihood="categorical").step(masked, weights=w)
        two = NaturalGradient(other, likelihood="categorical").step(
            objective(other, x[keep], y[keep])
        )
        torch.testing.assert_close(snapshot(model), snapshot(other), **TIGHT)
        assert one.kl == pytest.approx(two.kl, rel=1e-9)
        assert one.step_length == pytest.approx(two.step_length, rel=1e-9)

    def test_a_sub_sample_for_the_fisher(self):
        model, x, y = classifier()
        start = snapshot(model)
        gradient, _ = dense(model, x, y)
        _, fisher = dense(model, x[:3], y[:3])
        optimizer = NaturalGradient(
            model, target_kl=None, damping=0.1, likelihood="categorical", **EXACT
        )
        optimizer.step(
            objective(model, x, y), prediction=lambda: model(x[:3]), weights=torch.ones(7)
        )
        step = torch.linalg.solve(fisher + 0.1 * torch.eye(59), gradient)
        torch.testing.assert_close(snapshot(model), start - step, rtol=1e-8, atol=1e-9)


class TestSampledFisher:
    def run(self, seed, steps=3):
        torch.manual_seed(0)
        model, x, y = classifier()
        optimizer = NaturalGradient(model, likelihood="categorical", fisher="sampled", seed=seed)
        for _ in range(steps):
            optimizer.step(objective(model, x, y))
        return snapshot(model)

    def test_the_seed_decides(self):
        assert torch.equal(self.run(1), self.run(1))
        assert not torch.equal(self.run(1), self.run(2))

    def test_every_step_draws_anew(self):
        model, x, y = classifier()
        optimizer = NaturalGradient(model, likelihood="categorical", fisher="sampled")
        before = optimizer.generator.get_state()
        optimizer.step(objective(model, x, y))
        assert not torch.equal(optimizer.generator.get_state(), before)

    def test_the_global_generator_is_left_alone(self):
        model, x, y = classifier()
        state = torch.get_rng_state()
        NaturalGradient(model, likelihood="categorical", fisher="sampled").step(
            objective(model, x, y)
        )
        assert torch.equal(torch.get_rng_state(), state)

    def test_differs_from_the_exact_one_and_is_near_it(self):
        model, x, y = classifier()
        x, y = x.repeat(300, 1), y.repeat(300)
        steps = []
        for fisher in ("exact", "sampled"):
            twin = copy.deepcopy(model)
            options = {"target_kl": None, "damping": 0.1, "likelihood": "categorical"}
            NaturalGradient(twin, fisher=fisher, **options, **EXACT).step(objective(twin, x, y))
            steps.append(snapshot(twin) - snapshot(model))
        assert not torch.equal(*steps)
        assert float((steps[0] - steps[1]).norm() / steps[0].norm()) < 0.15


class TestGroups:
    def test_rates_multiply_each_groups_part(self):
        model, x, y = classifier()
        gradient, fisher = dense(model, x, y)
        start = snapshot(model)
        groups = [
            {"params": model[0].parameters(), "lr": 0.5},
            {"params": [*model[2].parameters(), *model[4].parameters()], "lr": 0.1},
        ]
        optimizer = NaturalGradient(
            groups, target_kl=None, damping=0.1, likelihood="categorical", **EXACT
        )
        optimizer.step(objective(model, x, y))
        step = torch.linalg.solve(fisher + 0.1 * torch.eye(59), gradient)
        rates = torch.cat([torch.full((16,), 0.5), torch.full((43,), 0.1)])
        torch.testing.assert_close(snapshot(model), start - rates * step, rtol=1e-8, atol=1e-9)

    def test_a_group_added_later_is_trained(self):
        model, x, y = classifier()
        optimizer = NaturalGradient(model[4].parameters(), likelihood="categorical")
        start = snapshot(model)
        optimizer.step(objective(model, x, y))
        assert torch.equal(snapshot(model)[:41], start[:41])
        assert not torch.equal(snapshot(model)[41:], start[41:])
        optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.5})
        start = snapshot(model)
        optimizer.step(objective(model, x, y))
        assert not torch.equal(snapshot(model)[:16], start[:16])
        assert torch.equal(snapshot(model)[16:41], start[16:41])

    def test_target_and_damping_can_be_scheduled(self):
        model, x, y = classifier()
        optimizer = NaturalGradient(model, likelihood="categorical", line_search=False)
        optimizer.param_groups[0]["damping"] = 0.7
        optimizer.param_groups[0]["target_kl"] = 1e-4
        report = optimizer.step(objective(model, x, y))
        assert report.damping == 0.7
        assert report.kl == pytest.approx(1e-4, rel=0.1)

    def test_part_of_a_module(self):
        model, x, y = classifier()
        start = snapshot(model)
        optimizer = NaturalGradient(
            model, parameters=model[0].parameters(), likelihood="categorical"
        )
        optimizer.step(objective(model, x, y))
        assert torch.equal(snapshot(model)[16:], start[16:])
        assert not torch.equal(snapshot(model)[:16], start[:16])


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"lr": 0.0}, "lr must be positive"),
            ({"lr": -1.0}, "lr must be positive"),
            ({"lr": math.nan}, "lr must be positive"),
            ({"target_kl": 0.0}, "target_kl must be positive"),
            ({"target_kl": -0.1}, "target_kl must be positive"),
            ({"target_kl": math.inf}, "None switches it off"),
            ({"damping": -1e-3}, "damping must not be negative"),
            ({"damping": math.nan}, "damping must not be negative"),
            ({"damping": math.inf}, "damping must not be negative"),
            ({"step_norm": "l2"}, "step_norm must be"),
            ({"curvature": "shampoo"}, "curvature must be"),
            ({"fisher": "empirical"}, "fisher must be"),
            ({"line_search_shrinking_factor": 1.0}, "between 0 and 1"),
            ({"line_search_shrinking_factor": 0.0}, "between 0 and 1"),
            ({"line_search_max_iter": 0}, "at least 1"),
            ({"cg_max_steps": 0}, "at least 1"),
        ],
    )
    def test_are_checked(self, settings, words):
        with pytest.raises(ConfigurationError, match=words):
            NaturalGradient(mlp(), **settings)

    @pytest.mark.parametrize(
        "settings",
        [
            {"lr": -1.0},
            {"target_kl": -0.1},
            {"damping": math.nan},
            {"step_norm": "dampd"},
            {"line_search_shrinking_factor": 1.5},
            {"line_search_max_iter": 0},
            {"cg_max_steps": 0},
        ],
    )
    def test_are_checked_where_they_change_later(self, settings):
        model, x, y = classifier()
        optimizer = NaturalGradient(model, likelihood="categorical")
        start = snapshot(model)
        optimizer.param_groups[0].update(settings)
        with pytest.raises(ConfigurationError, match=next(iter(settings))):
            optimizer.step(objective(model, x, y))
        assert torch.equal(snapshot(model), start)

    def test_a_state_from_before_a_setting_existed(self):
        model, x, y = classifier()
        optimizer = NaturalGradient(model, likelihood="categorical", cg_max_steps=3)
        state = optimizer.state_dict()
        for name in ("cg_max_steps", "cg_tolerance", "step_norm", "line_search"):
            del state["param_groups"][0][name]
        optimizer.load_state_dict(state)
        assert optimizer.step(objective(model, x, y)).cg_iterations == 3

    def test_zero_damping_is_allowed(self):
        assert NaturalGradient(mlp(), damping=0.0).defaults["damping"] == 0.0
