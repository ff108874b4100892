"""K-BFGS: its direction, its memory, and inverses that stay positive definite."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.optim import KBFGS
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import mlp


@pytest.fixture
def data():
    return torch.randn(24, 3), torch.randint(3, (24,))


def eigenvalues(optimizer):
    """Of every H that is a matrix."""
    factors = [*optimizer.preconditioner.inputs, *optimizer.preconditioner.outputs]
    return torch.cat(
        [torch.linalg.eigvalsh(f.secants.matrix) for f in factors if f is not None and f.secants]
    )


class TestMemory:
    def test_whole_steps_equal_those_of_matrices(self, data):
        """One-hot inputs have a diagonal A in both forms: H_G alone differs."""
        ends = []
        for memory in (None, 100):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Embedding(6, 4), nn.Tanh())
            x, y = torch.randint(6, (24,)), torch.randint(4, (24,))
            optimizer = KBFGS(model, memory=memory)
            for _ in range(12):
                optimizer.step(lambda m=model, x=x, y=y: F.cross_entropy(m(x), y))
            ends.append(snapshot(model))
        torch.testing.assert_close(ends[0], ends[1])

    def test_nothing_is_kept_of_a_layers_squared_width(self, data):
        model = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 3))
        optimizer = KBFGS(model, memory=5)
        for _ in range(8):
            optimizer.step(objective(model, *data))
        saved = optimizer.state_dict()["kbfgs"]
        tensors = [
            t
            for entry in saved
            for side in entry.values()
            for value in (*side.values(), *side["secants"].values())
            if isinstance(t := value, torch.Tensor)
        ]
        assert max(t.numel() for t in tensors) == 5 * 41


class TestDirection:
    def test_is_h_g_v_h_a(self, data):
        model = nn.Linear(3, 3)
        optimizer = KBFGS(model, lr=0.01, momentum=0.8, kl_clip=math.inf)
        velocity = torch.zeros(3, 4)
        for _ in range(6):
            before = torch.cat([model.weight, model.bias[:, None]], 1).detach().clone()
            loss = F.cross_entropy(model(data[0]), data[1])
            w, b = torch.autograd.grad(loss, [model.weight, model.bias])
            velocity = 0.8 * velocity + 0.2 * torch.cat([w, b[:, None]], 1)
            h_g = torch.eye(3)
            if optimizer.preconditioner.outputs[0] is not None:
                h_g = optimizer.preconditioner.outputs[0].secants.matrix.clone()
            optimizer.step(objective(model, *data))
            h_a = optimizer.preconditioner.inputs[0].secants.matrix
            after = torch.cat([model.weight, model.bias[:, None]], 1).detach()
            torch.testing.assert_close(after, before - 0.01 * h_g @ velocity @ h_a)

    def test_the_pair_is_the_change_in_the_layers_output(self, data):
        """Of a quadratic loss ½ ‖h‖²/N, y = s: the gradient of its mean is the mean of h."""
        model = nn.Linear(3, 3)
        optimizer = KBFGS(model)
        for _ in range(3):
            optimizer.step(lambda: model(data[0]).square().sum() / 48)
        pair = optimizer.preconditioner.outputs[0]
        assert float(pair.mean_s.norm()) > 1e-4
        torch.testing.assert_close(pair.mean_y, pair.mean_s)

    @pytest.mark.parametrize("memory", [None, 4])
    def test_every_row_twice_is_the_same(self, memory, data):
        ends = []
        for repeats in (1, 2):
            torch.manual_seed(0)
            model = mlp()
            optimizer = KBFGS(model, memory=memory)
            x, y = (t.repeat(repeats, *[1] * (t.ndim - 1)) for t in data)
            for _ in range(5):
                optimizer.step(objective(model, x, y))
            ends.append(snapshot(model))
        torch.testing.assert_close(ends[0], ends[1])

    def test_the_clip(self, data):
        """½ Σ η² ⟨V, H V H⟩ of the step that was taken is δ."""
        model = nn.Linear(3, 3)
        optimizer = KBFGS(model, lr=5.0, kl_clip=1e-3)
        start = torch.cat([model.weight, model.bias[:, None]], 1).detach().clone()
        report = optimizer.step(objective(model, *data))
        moved = torch.cat([model.weight, model.bias[:, None]], 1).detach() - start
        h_a = optimizer.preconditioner.inputs[0].secants.matrix
        v = torch.cat([optimizer.state[p]["velocity"].view(3, -1) for p in model.parameters()], 1)
        assert (report.accepted, report.fraction) == (True, 1.0)
        assert 0 < report.step_length < 1
        torch.testing.assert_close(moved, -5.0 * report.step_length * v @ h_a)
        assert float((moved @ h_a.inverse() * moved).sum()) / 2 == pytest.approx(1e-3)

    def test_weight_decay_of_both_kinds(self, data):
        """One step from V = 0: θ ← (1 − 0.1 · 0.5) θ − …, or 0.1 · 0.1 · H_G λθ H_A further."""
        ends = {}
        for kind, options in {
            "none": {},
            "L2": {"weight_decay": 0.5},
            "decoupled": {"weight_decay": 0.5, "decoupled_weight_decay": True},
        }.items():
            torch.manual_seed(0)
            model = nn.Linear(3, 3, bias=False)
            start = model.weight.detach().clone()
            optimizer = KBFGS(model, lr=0.1, kl_clip=math.inf, **options)
            optimizer.step(objective(model, *data))
            h_a = optimizer.preconditioner.inputs[0].secants.matrix
            ends[kind] = model.weight.detach()
        torch.testing.assert_close(ends["decoupled"], ends["none"] - 0.05 * start)
        torch.testing.assert_close(ends["L2"], ends["none"] - 0.1 * 0.1 * 0.5 * start @ h_a)


class TestDefiniteness:
    @pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
    def test_over_many_steps(self, activation):
        model = nn.Sequential(nn.Linear(5, 8), activation(), nn.Linear(8, 3))
        optimizer = KBFGS(model, damping=0.01)
        for i in range(300):
            x, y = torch.randn(16, 5), torch.randint(3, (16,))
            optimizer.step(objective(model, x, y))
            if i % 20 == 0:
                assert float(eigenvalues(optimizer).min()) > 0
        for factor in optimizer.preconditioner.outputs:
            h = factor.secants.matrix
            torch.testing.assert_close(h, h.T, rtol=0, atol=1e-12)

    def test_where_the_curvature_is_negative(self, data):
        """A concave loss: every y points against its s."""
        model = mlp()
        optimizer = KBFGS(model, lr=0.1)
        for _ in range(30):
            optimizer.step(lambda: -model(data[0]).square().mean())
            assert float(eigenvalues(optimizer).min()) > 0


class TestConditions:
    def test_dropout_and_running_statistics_are_those_of_one_evaluation(self):
        """Steps below rounding: all evaluations are the same, and BatchNorm has seen one batch."""
        model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
        nn.init.ones_(model[1].bias)  # a step from 0 is never below rounding
        x, y = torch.randn(16, 3), torch.randint(2, (16,))
        twin = copy.deepcopy(model)
        optimizer = KBFGS(model, kl_clip=1e-60)
        state = torch.get_rng_state()
        for i in range(3):
            report = optimizer.step(objective(model, x, y))
            assert report.loss_after == report.loss
            assert report.evaluations == (2 if i else 3)
        assert int(model[1].num_batches_tracked) == 3
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        for _ in range(3):
            twin(x)
        torch.testing.assert_close(model[1].running_mean, twin[1].running_mean)
        assert torch.equal(torch.get_rng_state(), after)
        for factor in optimizer.preconditioner.outputs:
            assert not factor.mean_s.any()
            assert not factor.mean_y.any()
