"""K-BFGS where something goes wrong: a step is taken whole or not at all."""

import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import KBFGS
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import mlp


@pytest.fixture
def data():
    return torch.randn(24, 3), torch.randint(3, (24,))


def fails_later(model, data, call, value):
    """A closure whose loss is not finite at one of its calls."""
    calls = []

    def closure():
        calls.append(1)
        loss = F.cross_entropy(model(data[0]), data[1])
        return loss * value if len(calls) == call else loss

    return closure


class TestFaults:
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("call", [1, 2])
    def test_what_is_not_finite_moves_nothing(self, data, call, value):
        model = mlp()
        optimizer = KBFGS(model)
        for _ in range(3):
            optimizer.step(objective(model, *data))
        start, outputs = snapshot(model), repr(optimizer.preconditioner.state_dict()[0]["outputs"])
        everything = repr(optimizer.preconditioner.state_dict())
        report = optimizer.step(fails_later(model, data, call, value))
        assert not report.accepted
        assert torch.equal(snapshot(model), start)
        assert repr(optimizer.preconditioner.state_dict()[0]["outputs"]) == outputs
        counted = "skipped" if call == 1 else "rejected"
        assert optimizer.extra == {"steps": 4, "skipped": 0, "rejected": 0} | {counted: 1}
        if call == 1:
            assert repr(optimizer.preconditioner.state_dict()) == everything
        assert optimizer.step(objective(model, *data)).accepted
        assert not torch.equal(snapshot(model), start)

    def test_a_direction_that_is_not_finite_leaves_all_but_the_inputs_inverse(self):
        """H_A = 10¹⁵ for inputs next to zero, gradients of 10¹⁴: ⟨V, H V H⟩ overflows float32."""
        model = nn.Linear(3, 2, bias=False, dtype=torch.float32)
        x, scale = torch.randn(8, 3, dtype=torch.float32), [1.0]
        optimizer = KBFGS(model, damping=1e-30)

        def closure():
            return scale[0] * (model(1e-10 * x) - 1).square().mean()

        assert optimizer.step(closure).accepted
        start, velocity = snapshot(model), optimizer.state[model.weight]["velocity"].clone()
        inputs, outputs = optimizer.preconditioner.inputs[0], optimizer.preconditioner.outputs[0]
        followed, scale[0] = repr(outputs.state()), 1e24
        report = optimizer.step(closure)
        assert (report.accepted, report.reason) == (False, "step is not finite")
        assert optimizer.extra == {"steps": 2, "skipped": 1, "rejected": 0}
        assert torch.equal(snapshot(model), start)
        assert torch.equal(optimizer.state[model.weight]["velocity"], velocity)
        assert repr(outputs.state()) == followed
        assert inputs.updates == 2
        scale[0] = 1.0
        assert "finite" not in optimizer.step(closure).reason

    @pytest.mark.parametrize(("rise", "taken"), [(0.1, True), (0.3, False)])
    def test_a_step_that_leads_far_up_is_taken_back(self, data, rise, taken):
        """The first step is as long as kl_clip = 0.1 lets it be: its length squared is 0.2."""
        model, calls = mlp(), []
        optimizer = KBFGS(model, kl_clip=0.1, damping=1e-3, momentum=0.0, deterministic=False)
        start = snapshot(model)

        def closure():
            calls.append(1)
            loss = 1e3 * F.cross_entropy(model(data[0]), data[1])
            return loss if len(calls) == 1 else loss - loss.detach() + before + rise

        before = 1e3 * F.cross_entropy(model(data[0]), data[1]).detach()
        before_step = repr(optimizer.preconditioner.state_dict()[0]["outputs"])
        report = optimizer.step(closure)
        assert 0 < report.step_length < 1, "the step is clipped"
        assert (report.accepted, report.fraction) == (taken, float(taken))
        assert math.isnan(report.kl) if taken else report.kl == 0.0
        assert torch.equal(snapshot(model), start) == (not taken)
        assert optimizer.extra["rejected"] == (not taken)
        assert repr(optimizer.preconditioner.state_dict()[0]["outputs"]) != before_step
        if not taken:
            assert report.reason == "the loss rose"
            assert report.loss_after == report.loss
            assert not any("velocity" in state for state in optimizer.state.values())

    def test_a_rate_of_zero_learns_and_forgets_nothing(self, data):
        """As schedules end; where one group still has a rate, that one moves."""
        model = mlp()
        groups = [{"params": model[i].parameters()} for i in (0, 2, 4)]
        optimizer = KBFGS(model, parameters=groups, weight_decay=0.1, decoupled_weight_decay=True)
        for _ in range(3):
            optimizer.step(objective(model, *data))
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        start, before = snapshot(model), repr(optimizer.state_dict())
        report = optimizer.step(objective(model, *data))
        assert (report.accepted, report.reason) == (False, "the rate is zero")
        assert (report.evaluations, report.kl, report.step_length) == (1, 0.0, 0.0)
        assert torch.equal(snapshot(model), start)
        assert optimizer.extra == {"steps": 4, "skipped": 1, "rejected": 0}
        optimizer.extra = {"steps": 3, "skipped": 0, "rejected": 0}
        assert repr(optimizer.state_dict()) == before
        optimizer.param_groups[2]["lr"] = 1.0
        assert optimizer.step(objective(model, *data)).accepted
        moved = [not torch.equal(p, q) for p, q in zip(snapshot(model), start, strict=True)]
        assert sum(moved) == sum(p.numel() for p in model[4].parameters())

    def test_an_exception_at_the_second_call_moves_nothing(self, data):
        model = mlp()
        optimizer = KBFGS(model, deterministic=False)
        start, calls = snapshot(model), []

        def closure():
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return F.cross_entropy(model(data[0]), data[1])

        with pytest.raises(KeyboardInterrupt):
            optimizer.step(closure)
        assert torch.equal(snapshot(model), start)
        assert optimizer.step(objective(model, *data)).accepted

    def test_closures_of_another_kind(self, data):
        model = mlp()
        optimizer = KBFGS(model)
        start = snapshot(model)

        def backward():
            loss = F.cross_entropy(model(data[0]), data[1])
            loss.backward()
            return loss

        other = mlp()
        for closure in (None, backward, lambda: 1.0, lambda: model(data[0])):
            with pytest.raises(ConfigurationError, match="closure"):
                optimizer.step(closure)
        with pytest.raises(ConfigurationError, match="does not depend"):
            optimizer.step(objective(other, *data))
        assert torch.equal(snapshot(model), start)

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"lr": -1.0}, "lr"),
            ({"damping": 0.0}, "damping"),
            ({"momentum": 1.0}, "momentum"),
            ({"kl_clip": 0.0}, "kl_clip"),
            ({"weight_decay": -1.0}, "weight_decay"),
            ({"memory": 0}, "memory"),
            ({"statistics_decay": 1.0}, "statistics_decay"),
        ],
    )
    def test_settings_that_cannot_work(self, options, name):
        with pytest.raises(ConfigurationError, match=name):
            KBFGS(mlp(), **options)

    def test_a_group_that_is_not_the_models(self, data):
        model = mlp()
        optimizer = KBFGS(model, parameters=model[4].parameters())
        with pytest.raises(ConfigurationError, match="parameters of the model"):
            optimizer.add_param_group({"params": mlp().parameters()})
        assert len(optimizer.param_groups) == 1


class TestDisagreement:
    def test_numbers_from_elsewhere_are_told(self, data):
        """A batch that Python's random draws inside."""
        model, generator = mlp(), random.Random(0)
        start = snapshot(model)

        def closure():
            chosen = generator.sample(range(24), 5)
            return F.cross_entropy(model(data[0][chosen]), data[1][chosen])

        optimizer = KBFGS(model)
        with pytest.raises(ConfigurationError, match=r"draw batches.*deterministic=False"):
            optimizer.step(closure)
        assert torch.equal(snapshot(model), start)
        assert optimizer.extra["steps"] == 0, "the next step looks again"
        assert not any(optimizer.preconditioner.outputs)
        assert KBFGS(model, deterministic=False).step(closure).evaluations == 2

    def test_it_looks_at_the_first_step(self, data):
        model = mlp()
        optimizer = KBFGS(model)
        reports = [optimizer.step(objective(model, *data)) for _ in range(3)]
        assert [report.evaluations for report in reports] == [3, 2, 2]

    @pytest.mark.parametrize("deterministic", [True, False])
    @pytest.mark.parametrize("honest", [True, False])
    def test_it_looks_again_where_the_loss_rose(self, data, honest, deterministic):
        """A true rise is no disagreement; a loss that grows from call to call is one."""
        model, calls = mlp(), []
        optimizer = KBFGS(model, deterministic=deterministic)
        optimizer.step(objective(model, *data))
        start = snapshot(model)

        def closure():
            calls.append(1)
            loss = F.cross_entropy(model(data[0]), data[1])
            rises = not torch.equal(snapshot(model), start) if honest else len(calls) > 1
            return loss + 100 if rises else loss

        if deterministic and not honest:
            with pytest.raises(ConfigurationError, match="deterministic=False"):
                optimizer.step(closure)
        else:
            report = optimizer.step(closure)
            assert (report.accepted, report.reason) == (False, "the loss rose")
            assert report.evaluations == 2 + deterministic
        assert len(calls) == 2 + deterministic
        assert torch.equal(snapshot(model), start)
        assert optimizer.extra == {"steps": 2, "skipped": 0, "rejected": 1}
