"""K-BFGS: pairs, damping, both inverses, and a step that is taken whole or not at all."""

import copy
import io
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.curvature.kronecker.means import LayerMeans, Means
from npg.errors import ConfigurationError
from npg.optim import KBFGS, create
from npg.preconditioners.bfgs_factors import InputInverse, OutputInverse, double_damped
from npg.preconditioners.secants import DenseSecants, LimitedSecants
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import mlp

ROOT = math.sqrt(0.3)


@pytest.fixture
def data():
    return torch.randn(24, 3), torch.randint(3, (24,))


def bfgs_oracle(h, s, y):
    """(I − s yᵀ/sᵀy) H (I − y sᵀ/sᵀy) + s sᵀ/sᵀy, written out in NumPy."""
    h, s, y = (t.detach().numpy() for t in (h, s, y))
    left = np.eye(len(s)) - np.outer(s, y) / (s @ y)
    return torch.from_numpy(left @ h @ left.T + np.outer(s, s) / (s @ y))


def eigenvalues(optimizer):
    """Of every H that is a matrix."""
    factors = [*optimizer.preconditioner.inputs, *optimizer.preconditioner.outputs]
    return torch.cat(
        [torch.linalg.eigvalsh(f.secants.matrix) for f in factors if f is not None and f.secants]
    )


class TestDamping:
    def test_powells_stage(self):
        """H = 2I, s = (1, 0), y = (1, 2): sᵀy = 1, yᵀHy = 10, and 1 < 0.2 · 10.

        θ = 0.8 · 10 / (10 − 1) = 8/9, s̃ = 8/9 (1, 0) + 1/9 (2, 4) = (10/9, 4/9), and
        s̃ᵀy = 18/9 = 2 = 0.2 · 10. With ε = 0.5: s̃ᵀs̃ = 116/81, 2 ≥ 0.5 · 116/81, so that y stays.
        """
        h = DenseSecants(2 * torch.eye(2))
        s, y = double_damped(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 2.0]), h, 0.5)
        torch.testing.assert_close(s, torch.tensor([10 / 9, 4 / 9]))
        torch.testing.assert_close(y, torch.tensor([1.0, 2.0]))

    def test_the_second_stage(self):
        """H = I/4, s = (2, 0), y = (0.2, 0): sᵀy = 0.4 ≥ 0.2 yᵀHy = 0.002, so that s stays.

        With ε = 0.5, sᵀy = 0.4 < 0.5 · 4: θ = 0.5 · 4 / (4 − 0.4) = 5/9 and
        ỹ = 5/9 (0.2, 0) + 4/9 (2, 0) = (1, 0), with sᵀỹ = 2 = 0.5 · 4.
        """
        h = DenseSecants(torch.eye(2) / 4)
        s, y = double_damped(torch.tensor([2.0, 0.0]), torch.tensor([0.2, 0.0]), h, 0.5)
        torch.testing.assert_close(s, torch.tensor([2.0, 0.0]))
        torch.testing.assert_close(y, torch.tensor([1.0, 0.0]))

    def test_both_stages(self):
        """H = I, s = (1, 0), y = (−1, 0): sᵀy = −1 < 0.2 yᵀHy = 0.2.

        θ = 0.8 · 1 / (1 + 1) = 0.4, s̃ = 0.4 (1, 0) + 0.6 (−1, 0) = (−0.2, 0): s is turned round, by
        adding (1 − θ) H y; subtracting it would give (1, 0), sᵀy = −1. With ε = 6, which no λ below
        1 has: s̃ᵀy = 0.2 < 6 · 0.04 = 0.24, θ = −5 · 0.04 / (0.04 − 0.2) = 1.25 and
        ỹ = 1.25 (−1, 0) − 0.25 (−0.2, 0) = (−1.2, 0), with s̃ᵀỹ = 0.24.
        """
        h = DenseSecants(torch.eye(2))
        s, y = double_damped(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0]), h, 6.0)
        torch.testing.assert_close(s, torch.tensor([-0.2, 0.0]))
        torch.testing.assert_close(y, torch.tensor([-1.2, 0.0]))

    def test_the_curvature_is_positive_whatever_the_pair(self):
        h = DenseSecants(torch.eye(6))
        for _ in range(200):
            s, y = torch.randn(6), 10 * torch.randn(6)
            s, y = double_damped(s, y, h, ROOT)
            assert float(s @ y) >= ROOT * float(s @ s) * (1 - 1e-9) > 0
            h.update(s, y, torch.zeros(6))
            assert float(torch.linalg.eigvalsh(h.matrix).min()) > 0


class TestOutputInverse:
    @staticmethod
    def pair(outputs, signals):
        zero = torch.zeros(len(outputs))
        return Means(zero, zero), Means(-outputs, -signals)

    def test_the_matrix_itself_changes_to_the_oracles(self):
        """A reference symmetrises into a new tensor first, and updates that one."""
        inverse = OutputInverse(DenseSecants(torch.eye(3)), torch.zeros(3), decay=0.9)
        matrix = inverse.secants.matrix
        h, mean_s, mean_y = torch.eye(3), torch.zeros(3), torch.zeros(3)
        curvature = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
        for _ in range(5):
            s = torch.randn(3)
            mean_s, mean_y = 0.9 * mean_s + 0.1 * s, 0.9 * mean_y + 0.1 * curvature @ s
            inverse.update(*self.pair(s, curvature @ s), ROOT)
            damped = double_damped(mean_s, mean_y, DenseSecants(h), ROOT)
            h = bfgs_oracle(h, *damped)
            assert inverse.secants.matrix is matrix
            torch.testing.assert_close(matrix, h)
        assert float((matrix - torch.eye(3)).abs().max()) > 0.1

    def test_it_finds_an_inverse(self):
        curvature = torch.diag(torch.tensor([1.0, 2.0, 4.0]))
        inverse = OutputInverse(DenseSecants(torch.eye(3)), torch.zeros(3), decay=0.0)
        for _ in range(100):
            s = torch.randn(3)
            inverse.update(*self.pair(s, curvature @ s), ROOT)
        torch.testing.assert_close(
            inverse.secants.matrix, curvature.inverse(), rtol=1e-6, atol=1e-6
        )

    @pytest.mark.parametrize("wrong", [math.nan, math.inf])
    @pytest.mark.parametrize("memory", [None, 4])
    def test_what_is_not_finite_is_left_out(self, wrong, memory):
        secants = DenseSecants(torch.eye(3)) if memory is None else LimitedSecants(torch.ones(3), 4)
        secants.update(torch.ones(3), torch.tensor([1.0, wrong, 1.0]), torch.zeros(3))
        assert torch.equal(secants.times(torch.eye(3)), torch.eye(3))

    @pytest.mark.parametrize("memory", [None, 4])
    def test_little_curvature_next_to_the_gradient_is_left_out(self, memory):
        """sᵀy = 1, ‖s‖² = 1: left out from ‖g‖ = 10⁴ on."""
        secants = DenseSecants(torch.eye(2)) if memory is None else LimitedSecants(torch.ones(2), 4)
        s, y = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
        secants.update(s, y, torch.tensor([1.0001e4, 0.0]))
        assert torch.equal(secants.times(torch.eye(2)), torch.eye(2))
        secants.update(s, y, torch.tensor([0.9999e4, 0.0]))
        assert not torch.equal(secants.times(torch.eye(2)), torch.eye(2))


class TestInputInverse:
    def test_against_the_oracle(self):
        """(A₀ + √λ I)⁻¹ first, then BFGS along H ā with A's running mean, batch by batch."""
        inverse, moment, h = None, None, None
        for k in range(1, 30):
            rows = torch.randn(8, 4).relu() + 0.1
            mean, batch = rows.mean(0), rows.T @ rows / 8
            means = Means(torch.zeros(2), torch.zeros(2), mean, batch)
            if inverse is None:
                inverse = InputInverse.begin(means, ROOT, decay=0.9)
                moment, h = batch.clone(), torch.linalg.inv(batch + ROOT * torch.eye(4))
            else:
                inverse.update(means, ROOT)
                weight = max(1 / k, 0.1)
                moment = (1 - weight) * moment + weight * batch
                s = h @ mean
                h = bfgs_oracle(h, s, moment @ s + ROOT * s)
            torch.testing.assert_close(inverse.moment, moment)
            torch.testing.assert_close(inverse.secants.matrix, h)

    def test_one_batch_again_changes_nothing(self):
        """H (A + √λ I) s = s is what it begins with."""
        rows = torch.randn(8, 4)
        means = Means(torch.zeros(2), torch.zeros(2), rows.mean(0), rows.T @ rows / 8)
        inverse = InputInverse.begin(copy.deepcopy(means), ROOT, decay=0.9)
        before = inverse.secants.matrix.clone()
        inverse.update(means, ROOT)
        torch.testing.assert_close(inverse.secants.matrix, before)


class TestMemory:
    def test_equals_the_matrix_while_it_lasts(self):
        start = torch.rand(5) + 0.5
        dense, limited = DenseSecants(start.diag_embed()), LimitedSecants(start, 8)
        columns = torch.randn(5, 7)
        for i in range(12):
            s, y = torch.randn(5), torch.randn(5)
            s, y = double_damped(s, y, dense, ROOT)
            for secants in (dense, limited):
                secants.update(s, y, torch.zeros(5))
            alike = torch.allclose(dense.times(columns), limited.times(columns), rtol=1e-8)
            assert alike == (i < 8)

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
        assert 0 < report.fraction < 1
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


class Positions(nn.Module):
    """A linear layer on the patches of a convolution."""

    def __init__(self, convolution):
        super().__init__()
        weight = convolution.weight.detach().movedim(1, -1).flatten(1)  # kernel first
        self.layer = nn.Linear(weight.shape[1], len(weight))
        self.layer.weight = nn.Parameter(weight.clone())
        self.layer.bias = nn.Parameter(convolution.bias.detach().clone())

    def forward(self, x):
        patches = x.unfold(2, 2, 1).movedim(1, -1).flatten(2)  # [N, positions, kernel · channels]
        return self.layer(patches).transpose(1, 2)


class TestLayers:
    @pytest.mark.parametrize("memory", [None, 6])
    def test_a_convolution_is_a_linear_layer_on_patches(self, memory):
        convolution = nn.Conv1d(2, 3, 2)
        linear = Positions(convolution)
        x, target = torch.randn(6, 2, 5), torch.randn(6, 3, 4)
        for model in (convolution, linear):
            optimizer = KBFGS(model, memory=memory)
            for _ in range(6):
                optimizer.step(lambda m=model: (m(x) - target).square().mean())
        weight = convolution.weight.detach().movedim(1, -1).flatten(1)
        torch.testing.assert_close(weight, linear.layer.weight.detach())
        torch.testing.assert_close(convolution.bias, linear.layer.bias)

    @pytest.mark.parametrize("memory", [None, 3])
    def test_layers_of_every_kind(self, memory):
        class Many(nn.Module):
            def __init__(self):
                super().__init__()
                self.table = nn.Embedding(7, 6, padding_idx=0)
                self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
                self.norm = nn.LayerNorm(6)
                self.grouped = nn.Conv1d(6, 6, 2, groups=2)
                self.back = nn.ConvTranspose1d(6, 4, 2, stride=2)
                self.position = nn.Parameter(torch.zeros(5, 6))
                self.large = nn.Parameter(torch.zeros(300))
                self.head = nn.Linear(4, 3, bias=False)

            def forward(self, tokens):
                x = self.table(tokens) + self.position
                x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
                x = self.back(torch.relu_(self.grouped(x.transpose(1, 2)))).mean(2)
                return self.head(x) + self.large[:3]

        model = Many()
        x, y = torch.randint(7, (12, 5)), torch.randint(3, (12,))
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = KBFGS(model, memory=memory)
        losses = [float(optimizer.step(objective(model, x, y))) for _ in range(40)]
        assert losses[-1] < 0.7 * losses[0]
        for name, p in model.named_parameters():
            assert not torch.equal(p.detach(), start[name]), name
        assert torch.equal(model.table.weight[0], start["table.weight"][0])
        if memory is None:
            dense = [f for f in optimizer.preconditioner.outputs if hasattr(f.secants, "matrix")]
            assert all(float(torch.linalg.eigvalsh(f.secants.matrix).min()) > 0 for f in dense)

    def test_an_activation_in_place_does_not_change_the_means(self):
        x = torch.randn(8, 3)
        means = []
        for inplace in (False, True):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace), nn.Linear(4, 2))
            layers = LayerMeans(model, list(model.parameters()))
            with layers.listening():
                found = layers.measure(model(x).square().mean(), list(model.parameters()), "moment")
            means.append(found.means[0])
        torch.testing.assert_close(means[0].outputs, model[0](x).detach().mean(0))
        for one, other in zip(vars(means[0]).values(), vars(means[1]).values(), strict=True):
            torch.testing.assert_close(one, other)

    def test_a_layer_that_is_passed_by_is_told_of_once(self, data):
        class PassedBy(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

            def forward(self, x):
                return F.linear(self.body(x).tanh(), self.head.weight, self.head.bias)

        model = PassedBy()
        optimizer = KBFGS(model, lr=0.1, momentum=0.0, kl_clip=math.inf)
        start = model.head.bias.detach().clone()
        gradient = torch.autograd.grad(objective(model, *data)()[0], model.head.bias)[0]
        with pytest.warns(UserWarning, match=r"^head.weight, head.bias have gradients"):
            optimizer.step(objective(model, *data))
        torch.testing.assert_close(model.head.bias.detach(), start - 0.1 * gradient)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step(objective(model, *data))

    def test_nothing_is_noted_between_steps(self, data):
        model = mlp()
        optimizer = KBFGS(model)
        optimizer.step(objective(model, *data))
        model(data[0]).sum().backward()
        assert not optimizer.layers.capture.waiting
        assert not optimizer.layers.capture.open.noted


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

    @pytest.mark.parametrize(("rise", "taken"), [(0.1, True), (0.3, False)])
    def test_a_step_that_leads_far_up_is_taken_back(self, data, rise, taken):
        """The first step is as long as kl_clip = 0.1 lets it be: its length squared is 0.2."""
        model, calls = mlp(), []
        optimizer = KBFGS(model, kl_clip=0.1, damping=1e-3, momentum=0.0)
        start = snapshot(model)

        def closure():
            calls.append(1)
            loss = 1e3 * F.cross_entropy(model(data[0]), data[1])
            return loss if len(calls) == 1 else loss - loss.detach() + before + rise

        before = 1e3 * F.cross_entropy(model(data[0]), data[1]).detach()
        before_step = repr(optimizer.preconditioner.state_dict()[0]["outputs"])
        report = optimizer.step(closure)
        assert report.fraction < 1 or not taken, "the step is clipped"
        assert report.accepted == taken
        assert torch.equal(snapshot(model), start) == (not taken)
        assert optimizer.extra["rejected"] == (not taken)
        assert repr(optimizer.preconditioner.state_dict()[0]["outputs"]) != before_step
        if not taken:
            assert report.reason == "the loss rose"
            assert report.loss_after == report.loss
            assert not any("velocity" in state for state in optimizer.state.values())

    def test_an_exception_at_the_second_call_moves_nothing(self, data):
        model = mlp()
        optimizer = KBFGS(model)
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


class TestConditions:
    def test_dropout_and_running_statistics_are_those_of_one_evaluation(self):
        """With a rate of 0 both evaluations are the same, and BatchNorm has seen one batch."""
        model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
        x, y = torch.randn(16, 3), torch.randint(2, (16,))
        twin = copy.deepcopy(model)
        optimizer = KBFGS(model, lr=0.0)
        state = torch.get_rng_state()
        for _ in range(3):
            report = optimizer.step(objective(model, x, y))
            assert report.loss_after == report.loss
            assert report.evaluations == 2
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
