"""All evaluations of a step are of one function; what goes wrong leaves everything as it was."""

import copy
import io
import math
import pickle
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import NewtonCG
from npg.optim.objective import UNRESOLVED
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import mlp

MATRICES = ["gauss-newton", "hessian", "fisher"]


def made(model, matrix="gauss-newton", **options):
    return NewtonCG(model, matrix=matrix, likelihood="categorical", **options)


def data(n=24):
    return torch.randn(n, 3), torch.randint(3, (n,))


class Recorded:
    """A closure that keeps the losses it returned, and where the parameters were."""

    def __init__(self, model, closure):
        self.model, self.closure, self.losses, self.points = model, closure, [], []

    def __call__(self):
        loss, output = self.closure()
        self.losses.append(float(loss.detach()))
        self.points.append(snapshot(self.model))
        return loss, output


@pytest.mark.parametrize("matrix", MATRICES)
class TestSameConditions:
    def test_dropout_draws_the_same_masks(self, matrix):
        """The check that two evaluations agree passes, and the mask of the next step is another."""
        x, y = data()
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))
        closure = Recorded(model, objective(model, x, y))
        optimizer = made(model, matrix)
        reports = [optimizer.step(closure) for _ in range(3)]
        assert closure.losses[0] == closure.losses[1]
        assert torch.equal(closure.points[0], closure.points[1])
        assert all(report.accepted for report in reports)
        assert reports[1].loss != reports[0].loss_after

    def test_random_numbers_advance_by_one_evaluation(self, matrix):
        x, y = data()
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        state = torch.get_rng_state()
        model(x)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        made(model, matrix).step(objective(model, x, y))
        assert torch.equal(torch.get_rng_state(), after)

    def test_running_statistics_advance_once(self, matrix):
        x, y = data()
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))
        twin = copy.deepcopy(model)
        twin(x)
        report = made(model, matrix).step(objective(model, x, y))
        assert report.evaluations > 2
        assert int(model[1].num_batches_tracked) == 1
        torch.testing.assert_close(model[1].running_mean, twin[1].running_mean)
        torch.testing.assert_close(model[1].running_var, twin[1].running_var)


class TestDeterminism:
    def noisy(self, model, from_call=1):
        x, y = data()
        calls = []

        def closure():
            calls.append(1)
            loss, logits = objective(model, x, y)()
            noise = random.random() if len(calls) >= from_call else 0.0
            return loss + noise, logits

        return closure

    def test_a_closure_that_disagrees_with_itself_is_refused(self):
        model = mlp()
        start = snapshot(model)
        with pytest.raises(ConfigurationError, match=r"NewtonCG.*at the same parameters.*outside"):
            made(model).step(self.noisy(model))
        assert torch.equal(snapshot(model), start)

    def test_also_when_a_search_fails_because_of_it(self):
        """The first step is fine; later every trial is higher than the start was."""
        model = mlp()
        optimizer = made(model)
        x, y = data()
        closure = objective(model, x, y)
        assert optimizer.step(closure).accepted
        start = snapshot(model)
        calls = []

        def rising():
            calls.append(1)
            loss, logits = closure()
            return loss + len(calls), logits

        with pytest.raises(ConfigurationError, match="at the same parameters"):
            optimizer.step(rising)
        assert torch.equal(snapshot(model), start)

    def test_nobody_looks_if_told_not_to(self):
        model = mlp()
        closure = self.noisy(model)
        optimizer = made(model, deterministic=False)
        for _ in range(3):
            assert optimizer.step(closure).reason

    def test_is_checked_at_the_first_step_only(self):
        model = mlp()
        closure = Recorded(model, objective(model, *data()))
        optimizer = made(model, cg_backtracking=False)
        counts = []
        for _ in range(2):
            before = len(closure.losses)
            report = optimizer.step(closure)
            assert report.fraction == 1.0
            counts.append(len(closure.losses) - before)
            assert report.evaluations == counts[-1]
        assert counts == [3, 2]


class TestTrials:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("backtracking", [False, True])
    @pytest.mark.parametrize("matrix", ["gauss-newton", "hessian"])
    def test_what_is_not_finite_shortens_the_step(self, bad, backtracking, matrix):
        """(p − 3)², not defined from 1 on: the Newton step of 3 is halved twice."""
        point = nn.Parameter(torch.zeros(1))

        def closure():
            residual = point - 3
            loss = residual.square().sum()
            return (loss if float(point.detach()) < 1 else loss * math.nan + bad), residual

        options = {"damping": 1e-8, "cg_backtracking": backtracking, "warm_start": None}
        optimizer = NewtonCG([point], matrix=matrix, **options)
        report = optimizer.step(closure)
        assert report.accepted
        assert report.fraction == 0.25
        assert float(point.detach()) == pytest.approx(0.75, rel=1e-6)
        assert optimizer.schedule.damping > 1e-8, "the model's promise was not kept"

    def test_an_error_in_a_trial_restores(self):
        model = mlp()
        closure, start, calls = objective(model, *data()), snapshot(model), []

        def failing():
            calls.append(1)
            if len(calls) == 4:
                raise KeyError("a bug")
            return closure()

        with pytest.raises(KeyError):
            made(model).step(failing)
        assert torch.equal(snapshot(model), start)

    def test_a_refused_step_restores_bit_for_bit(self):
        model = mlp()
        closure, start = objective(model, *data()), snapshot(model)

        def cliff():
            loss, logits = closure()
            moved = not torch.equal(snapshot(model), start)
            return loss + 10.0 * moved, logits

        optimizer = made(model)
        report = optimizer.step(cliff)
        assert report.reason == "line search failed"
        assert torch.equal(snapshot(model), start)
        assert report.loss_after == report.loss
        assert "solution" not in optimizer.state_dict(), "nobody begins where nothing was found"

    def test_rates_that_turn_the_step_uphill(self):
        """H = [[1, .9], [.9, 1]] and g = (1, .5): x = (2.9, −2.1), of which one half is uphill."""
        points = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
        groups = [{"params": [p], "lr": lr} for p, lr in zip(points, (0.01, 1.0), strict=True)]
        calls = []

        def closure():
            calls.append(1)
            x, y = points
            loss = (x + 0.5 * y + 0.5 * (x * x + y * y) + 0.9 * x * y).sum()
            return loss if len(calls) == 1 else 0 * loss + 1e-6  # less than the slope promises

        optimizer = NewtonCG(groups, matrix="hessian", damping=0.0, deterministic=False)
        report = optimizer.step(closure)
        assert not report.accepted
        assert all(float(p.detach()) == 0 for p in points)

    def test_parameters_that_take_no_part(self):
        other, model = nn.Linear(2, 2), mlp()
        for matrix in MATRICES:
            with pytest.raises(ConfigurationError, match="depend"):
                made(other, matrix).step(objective(model, *data()))

    @pytest.mark.parametrize("matrix", MATRICES)
    @pytest.mark.parametrize("kind", ["vector", "number", "detached"])
    def test_losses_of_another_kind(self, matrix, kind):
        model, (x, y) = mlp(), data()

        def closure():
            logits = model(x)
            loss = F.cross_entropy(logits, y, reduction="none" if kind == "vector" else "mean")
            return {"vector": loss, "number": float(loss.sum()), "detached": loss.detach()}[
                kind
            ], logits

        with pytest.raises(ConfigurationError, match=r"NewtonCG: the closure must"):
            made(model, matrix).step(closure)

    @pytest.mark.parametrize("matrix", MATRICES)
    def test_a_closure_that_goes_backward(self, matrix):
        model, (x, y) = mlp(), data()

        def closure():
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            loss.backward(retain_graph=True)
            return loss, logits

        with pytest.raises(ConfigurationError, match=r"no backward\(\)"):
            made(model, matrix).step(closure)

    def test_singular_gauss_newton_without_damping(self):
        """Two equal columns: the least-squares step is found all the same."""
        model = nn.Linear(2, 1, bias=False)
        x = torch.randn(20, 1).expand(20, 2)
        y = 3 * x[:, :1]

        def closure():
            output = model(x)
            return (output - y).square().mean(), output

        report = NewtonCG(model, damping=0.0).step(closure)
        assert report.loss_after < 1e-20
        assert report.damping == 0.0


class TestState:
    OPTIONS = (
        {},
        {"matrix": "hessian"},
        {"cg_preconditioner": "kfac", "seed": 4},
        {"damping": 0.0, "matrix": "hessian", "cg_tolerance": None},
    )

    @pytest.mark.parametrize("options", OPTIONS)
    def test_the_last_solution_is_saved_uncast(self, options):
        """float32 solutions of float16 parameters would be half; here they keep what they are."""
        model, (x, y) = mlp(), data()
        optimizer = made(model, **options)
        for _ in range(3):
            optimizer.step(objective(model, x, y))
        state = optimizer.state_dict()
        assert state["solution"].dtype == torch.float64
        assert not state["state"], "torch would cast what is there"
        file = io.BytesIO()
        torch.save(state, file)
        twin = copy.deepcopy(model)
        resumed = made(twin, **{**options, "seed": 99})
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        for _ in range(3):
            reports = [o.step(objective(m, x, y)) for o, m in ((optimizer, model), (resumed, twin))]
            assert reports[0] == reports[1]
            assert torch.equal(snapshot(model), snapshot(twin))

    def test_the_solution_matters(self):
        model, (x, y) = mlp(), data()
        optimizer = made(model, cg_max_steps=5)
        for _ in range(3):
            optimizer.step(objective(model, x, y))
        twin = copy.deepcopy(model)
        state = optimizer.state_dict()
        del state["solution"]
        resumed = made(twin, cg_max_steps=5)
        resumed.load_state_dict(state)
        for o, m in ((optimizer, model), (resumed, twin)):
            o.step(objective(m, x, y))
        assert not torch.equal(snapshot(model), snapshot(twin))

    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    def test_copies_have_a_solution_of_their_own(self, how):
        model, (x, y) = mlp(), data()
        optimizer = made(model)
        optimizer.step(objective(model, x, y))
        pair = model, optimizer
        twin, other = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
        assert torch.equal(other.solution, optimizer.solution)
        assert other.solution is not optimizer.solution
        for o, m in ((optimizer, model), (other, twin)):
            o.step(objective(m, x, y))
        assert torch.equal(snapshot(model), snapshot(twin))

    def test_added_parameters_begin_anew(self):
        model, (x, y) = mlp(), data()
        optimizer = made(model, parameters=list(model[4].parameters()))
        optimizer.step(objective(model, x, y))
        optimizer.add_param_group({"params": model[0].parameters()})
        start = snapshot(model)
        assert optimizer.step(objective(model, x, y)).accepted
        assert bool((snapshot(model) != start)[:16].all())


class TestAtTheMinimum:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_damping_survives_it(self, dtype):
        """Rounding alone is left there to compare: it must not talk λ up to where nothing moves."""
        model = nn.Linear(6, 3).to(dtype)
        x, y = torch.randn(50, 6, dtype=dtype), torch.randn(50, 3, dtype=dtype)
        optimizer = NewtonCG(model)

        def closure():
            output = model(x)
            return F.mse_loss(output, y), output

        for _ in range(80):
            last = optimizer.step(closure)
        assert optimizer.schedule.damping < 0.1
        y *= 5
        for _ in range(4):
            report = optimizer.step(closure)
        inputs = torch.cat([x, torch.ones(50, 1, dtype=dtype)], 1)
        least = F.mse_loss(inputs @ torch.linalg.lstsq(inputs, y).solution, y)
        assert report.loss_after == pytest.approx(float(least), rel=1e-4)
        assert last.loss < report.loss

    def test_a_step_that_moves_nothing_is_not_accepted(self):
        model = nn.Linear(6, 3).float()
        x, y = torch.randn(50, 6).float(), torch.randn(50, 3).float()
        optimizer = NewtonCG(model)
        reports, moved = [], []
        for _ in range(60):
            before = snapshot(model)
            reports.append(optimizer.step(lambda: (F.mse_loss(o := model(x), y), o)))
            moved.append(not torch.equal(snapshot(model), before))
        assert [report.accepted for report in reports] == moved
        assert all(report.kl == 0.0 for report in reports if not report.accepted)
        x.mul_(0.0).add_(1e-12)  # along which no weight of this size can change
        report = NewtonCG([model.weight], damping=1e3).step(
            lambda: (F.mse_loss(o := model(x), y), o)
        )
        assert (report.reason, report.accepted) == (UNRESOLVED, False)
        assert report.kl == 0.0

    def test_a_rate_of_zero_is_no_failure(self):
        model, (x, y) = mlp(), data()
        optimizer = made(model)
        optimizer.step(objective(model, x, y))
        damping, start = optimizer.schedule.damping, snapshot(model)
        optimizer.param_groups[0]["lr"] = 0.0
        report = optimizer.step(objective(model, x, y))
        assert (report.reason, report.accepted) == ("the rate is zero", False)
        assert optimizer.schedule.damping == damping
        assert torch.equal(snapshot(model), start)
