import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import BFGS, LBFGS, SR1
from npg.optim.objective import Objective, agree
from tests.npg.optim.helpers import snapshot
from tests.npg.oracles import flat

KINDS = {
    "bfgs": BFGS,
    "lbfgs": LBFGS,
    "armijo": lambda model, **options: LBFGS(model, line_search="armijo", **options),
    "sr1": SR1,
    "sr1-search": lambda model, **options: SR1(model, globalisation="line-search", **options),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def noisy_model(dtype=torch.float64):
    """Dropout, and batch normalisation with running statistics."""
    layers = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 1)
    return nn.Sequential(*layers).to(dtype)


@pytest.fixture
def data():
    return torch.randn(20, 3), torch.randn(20, 1)


def closure_of(model, x, y, seen=None):
    def closure():
        loss = F.mse_loss(model(x), y)
        if seen is not None:
            seen.append((snapshot(model), loss.item()))
        return loss

    return closure


class TestSameConditions:
    def test_all_evaluations_of_a_step_draw_the_same_masks(self, kind, data):
        """Each trial again, by hand, from the random state before the step."""
        model, seen = noisy_model(), []
        closure = closure_of(model, *data, seen)
        before = torch.get_rng_state()
        report = kind(model, iterations=4).step(closure)
        assert report.accepted
        assert report.evaluations == len(seen) >= 6
        for parameters, loss in list(seen):
            nn.utils.vector_to_parameters(parameters.clone(), model.parameters())
            torch.set_rng_state(before)
            assert closure().item() == loss

    def test_a_step_advances_everything_as_one_forward_pass_does(self, kind, data):
        model = noisy_model()
        twin = copy.deepcopy(model)
        running, before = model[1].running_mean, torch.get_rng_state()
        kind(model, iterations=3).step(closure_of(model, *data))
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        closure_of(twin, *data)()
        assert torch.equal(torch.get_rng_state(), after)
        assert int(model[1].num_batches_tracked) == 1
        for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
            assert torch.equal(ours, theirs)
        assert model[1].running_mean is running

    def test_so_does_a_step_that_fails(self, kind, data):
        model, seen = noisy_model(), []
        twin, before = copy.deepcopy(model), torch.get_rng_state()

        def closure():
            seen.append(0)
            loss = closure_of(model, *data)()
            return loss if len(seen) == 1 else loss + 100

        report = kind(model, deterministic=False).step(closure)
        after = torch.get_rng_state()
        assert not report.accepted
        torch.set_rng_state(before)
        closure_of(twin, *data)()
        assert torch.equal(torch.get_rng_state(), after)
        assert int(model[1].num_batches_tracked) == 1
        assert torch.equal(snapshot(model), snapshot(twin))

    def test_each_step_draws_anew(self, kind, data):
        model, seen = noisy_model(), []
        optimizer = kind(model, lr=1e-3)
        for _ in range(2):
            optimizer.step(closure_of(model, *data, seen))
        (start, first), *_ = seen
        later = [loss for parameters, loss in seen if not torch.equal(parameters, start)]
        assert len({round(loss, 2) for loss in [first, *later]}) > 1
        assert int(model[1].num_batches_tracked) == 2


class TestDisagreement:
    @staticmethod
    def noisy(model, x, y, generator):
        def closure():
            chosen = generator.sample(range(len(x)), 5)
            return F.mse_loss(model(x[chosen]), y[chosen])

        return closure

    def test_numbers_from_elsewhere_are_told(self, kind, data):
        """A batch that Python's random draws inside."""
        model = nn.Linear(3, 1)
        start = snapshot(model)
        with pytest.raises(ConfigurationError, match=r"draw batches.*deterministic=False"):
            kind(model).step(self.noisy(model, *data, random.Random(0)))
        assert torch.equal(snapshot(model), start)

    def test_also_where_no_module_is_known(self, kind, data):
        """Dropout keeps its masks; batch normalisation trains on the batch's own statistics."""
        model = noisy_model()
        assert kind(model.parameters()).step(closure_of(model, *data)).accepted

    def test_deterministic_false_takes_it(self, data):
        model = nn.Linear(3, 1)
        optimizer = LBFGS(model, lr=0.1, line_search=None, deterministic=False)
        closure = self.noisy(model, *data, random.Random(0))
        reports = [optimizer.step(closure) for _ in range(5)]
        assert all(report.accepted for report in reports)
        assert reports[0].evaluations == 2

    def test_checks_again_when_no_trial_is_good(self, kind, data):
        """A closure that is the same at first, and drifts later."""
        model, calls = nn.Linear(3, 1), []

        def closure():
            calls.append(0)
            return F.mse_loss(model(data[0]), data[1]) + (len(calls) > 2) * float(len(calls))

        start = snapshot(model)
        with pytest.raises(ConfigurationError, match=r"returned .* and then .* at the same param"):
            kind(model).step(closure)
        assert torch.equal(snapshot(model), start)

    @pytest.mark.parametrize(
        ("a", "b", "same"),
        [
            (1.0, 1.0, True),
            (1.0, 1 + 1e-9, True),
            (1.0, 1 + 1e-7, False),
            (0.0, 0.0, True),
            (0.0, 1e-300, False),
            (float("nan"), float("nan"), True),
            (float("inf"), float("nan"), True),
            (1.0, float("nan"), False),
        ],
    )
    def test_agree(self, a, b, same):
        """√ε is 1.5e-8 in float64 and 3.5e-4 in float32."""
        like = [torch.zeros(1)]
        assert agree(a, b, like) == agree(b, a, like) == same
        assert agree(1.0, 1 + 1e-4, [torch.zeros(1, dtype=torch.float32)])
        assert not agree(1.0, 1 + 1e-3, [torch.zeros(1, dtype=torch.float32)])


class TestExceptions:
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    @pytest.mark.parametrize("at", [1, 2, 3, 4])
    def test_leave_everything_as_it_was(self, kind, data, error, at):
        """At the start, the check, the first trial, which is too high, and the second."""
        model, calls = noisy_model(), []
        with torch.no_grad():
            model[0].bias[0] = -0.0
        start = snapshot(model)

        def closure():
            calls.append(0)
            loss = closure_of(model, *data)()
            if len(calls) == at:
                raise error("at a trial")
            return loss + (5.0 if len(calls) == 3 else 0.0)

        optimizer = kind(model)
        with pytest.raises(error, match="at a trial"):
            optimizer.step(closure)
        assert len(calls) == at
        assert torch.equal(snapshot(model), start)
        assert torch.equal(snapshot(model).signbit(), start.signbit())
        assert int(model[1].num_batches_tracked) == 1
        assert optimizer.step(closure_of(model, *data)).accepted


class TestObjective:
    def test_move_and_restore(self, data):
        model = nn.Linear(3, 1)
        objective = Objective(LBFGS(model), closure_of(model, *data))
        with torch.no_grad():
            model.weight[0, 0] = -0.0
        start = snapshot(model)
        objective.remember()
        objective.move(torch.tensor([1.0, 2.0, 3.0, 4.0]), 0.1)
        torch.testing.assert_close(
            objective.displacement(), torch.tensor([0.1, 0.2, 0.3, 0.4]), rtol=1e-12, atol=1e-15
        )
        torch.testing.assert_close(snapshot(model), start + objective.displacement())
        objective.restore()
        assert torch.equal(snapshot(model), start)
        assert torch.equal(snapshot(model).signbit(), start.signbit())
        assert not objective.displacement().any()

    def test_displacement_is_after_rounding(self):
        parameter = nn.Parameter(torch.tensor([1.0, 1e-9], dtype=torch.float32))
        objective = Objective(LBFGS([parameter]), None)
        objective.remember()
        objective.move(torch.tensor([1e-9, 1e-9], dtype=torch.float32), 1.0)
        assert objective.displacement()[0] == 0
        assert objective.displacement()[1] == pytest.approx(1e-9)

    def test_value_gradient_and_slope(self, data):
        model = nn.Linear(3, 1)
        closure, direction = closure_of(model, *data), torch.randn(4)
        objective = Objective(LBFGS(model), closure)
        found = objective.gradient(0.5, direction)
        gradient = flat(torch.autograd.grad(closure(), list(model.parameters())))
        torch.testing.assert_close(found.gradient, gradient)
        assert found.value == closure().item() == objective.value()
        assert found.slope == pytest.approx(float(gradient @ direction))
        assert found.step == 0.5
        assert objective.evaluations == 2
        assert all(p.grad is None for p in model.parameters())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_lower_precision(self, kind, data, dtype):
        """Trained in it from end to end, with noise that is the same in all evaluations."""
        model = noisy_model(dtype)
        closure = closure_of(model, *(d.to(dtype) for d in data))
        model.eval()
        before = closure().item()
        model.train()
        optimizer = kind(model)
        for _ in range(10):
            optimizer.step(closure)
        assert all(p.dtype == dtype for p in model.parameters())
        model.eval()
        assert closure().item() < before
