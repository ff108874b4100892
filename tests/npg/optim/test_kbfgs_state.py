"""K-BFGS saved and loaded."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from npg.errors import ConfigurationError
from npg.optim import KBFGS, create
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import mlp


@pytest.fixture
def data():
    return torch.randn(24, 3), torch.randint(3, (24,))


class TestState:
    @pytest.mark.parametrize("memory", [None, 3])
    def test_moments_are_not_cast(self, data, memory):
        """In bfloat16 the inverses are float32, through a file too, and go on bit for bit."""
        model = mlp().bfloat16()
        x, y = data[0].bfloat16(), data[1]
        optimizer = KBFGS(model, memory=memory)
        for _ in range(5):
            optimizer.step(objective(model, x, y))
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, saved = torch.load(file, weights_only=True)
        twin = mlp().bfloat16()
        twin.load_state_dict(weights)
        resumed = KBFGS(twin, memory=memory)
        resumed.load_state_dict(saved)
        assert resumed.preconditioner.outputs[0].mean_s.dtype == torch.float32
        for _ in range(3):
            optimizer.step(objective(model, x, y))
            resumed.step(objective(twin, x, y))
        assert torch.equal(snapshot(model), snapshot(twin))
        assert repr(resumed.state_dict()) == repr(optimizer.state_dict())

    @pytest.mark.parametrize("steps", [0, 3])
    @pytest.mark.parametrize("value", [1e9, math.nan])
    def test_after_a_step_that_was_taken_back(self, data, steps, value):
        """No velocities are left, and the state goes on bit for bit all the same."""
        model, factors = mlp(), iter([1.0, value])
        optimizer = KBFGS(model, deterministic=False)
        for _ in range(steps):
            optimizer.step(objective(model, *data))
        report = optimizer.step(lambda: next(factors) * objective(model, *data)()[0])
        assert not report.accepted
        assert not optimizer.state
        twin = copy.deepcopy(model)
        resumed = KBFGS(twin)
        resumed.load_state_dict(optimizer.state_dict())
        for _ in range(3):
            one, other = (
                optimizer.step(objective(model, *data)),
                resumed.step(objective(twin, *data)),
            )
            assert one.accepted
            assert repr(one) == repr(other)
        assert torch.equal(snapshot(model), snapshot(twin))
        assert repr(resumed.state_dict()) == repr(optimizer.state_dict())

    def test_what_is_forgotten_is_forgotten_of_all(self, data):
        """Also of a parameter that the step that was taken back had no gradient of."""
        model, factors = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]), iter([1.0, math.nan])
        optimizer = KBFGS(model)
        both = nn.Sequential(*model)
        optimizer.step(objective(both, *data))
        assert len(optimizer.state) == 4
        optimizer.step(lambda: next(factors) * objective(model[0], *data)()[0])
        assert not optimizer.state

    def test_a_look_up_does_no_harm(self, data):
        """torch's state is a defaultdict: what is asked for is in it afterwards, and empty."""
        model = mlp()
        optimizer = KBFGS(model)
        assert optimizer.state[model[0].weight] == {}
        KBFGS(mlp()).load_state_dict(optimizer.state_dict())
        assert optimizer.step(objective(model, *data)).accepted

    def test_states_that_do_not_fit(self, data):
        model = mlp()
        optimizer = KBFGS(model)
        optimizer.step(objective(model, *data))
        saved = optimizer.state_dict()
        for other in (
            KBFGS(mlp(), memory=4),
            KBFGS(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))),
            KBFGS(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 3))),
        ):
            before = repr(other.state_dict())
            with pytest.raises(ConfigurationError, match="the state is of"):
                other.load_state_dict(saved)
            assert repr(other.state_dict()) == before
        with pytest.raises(ConfigurationError, match="not K-BFGS's"):
            optimizer.load_state_dict(create("adamw", model).state_dict())
