"""The block-tridiagonal inverse inside K-FAC, against moments written out sample by sample."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import NumericalError
from npg.optim import KFAC
from npg.preconditioners import TridiagonalInverse
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.optim.kfac_oracle import inner_fisher, inputs_and_signals, joined
from tests.npg.oracles import TIGHT, flat, mlp
from tests.npg.preconditioners.chain_statistics import Statistics, assemble


@pytest.fixture
def batches():
    return [(torch.randn(n, 3), torch.randint(3, (n,))) for n in (12, 7, 12, 9)]


def chained(model, **options):
    settings = {"kl_clip": math.inf, "momentum": 0.0, "fisher": "exact", "inverse_interval": 1}
    named = {"likelihood": "categorical", "inverse": "block-tridiagonal"}
    return KFAC(model, **{"statistics_interval": 1, **named, **settings, **options})


def train(optimizer, model, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def joint_moments(model, x):
    """E[a_l a_mᵀ] and E[δ_l δ_mᵀ] of all layers, δ over the columns of the exact Fisher."""
    inner = inner_fisher(model(x).detach())
    inputs, jacobians = inputs_and_signals(model, x)
    n = len(x)
    return Statistics(
        [[(a.T @ b / n).contiguous() for b in inputs] for a in inputs],
        [
            [
                (torch.einsum("nki,nkl,nlj->ij", j, inner, k).detach() / n).contiguous()
                for k in jacobians
            ]
            for j in jacobians
        ],
    )


def dense_inverse(statistics, damping):
    """Ξᵀ Λ Ξ from dense Kronecker products: Martens and Grosse 2015, section 4.3."""
    damped = statistics.damped(damping)
    blocks = damped.dense()
    last = len(blocks) - 1
    sizes = [len(row[i]) for i, row in enumerate(blocks)]
    xi = [[torch.zeros(m, n) for n in sizes] for m in sizes]
    precision = [[torch.zeros(m, n) for n in sizes] for m in sizes]
    for i in range(last + 1):
        xi[i][i] = torch.eye(sizes[i])
        conditional = blocks[i][i]
        if i < last:
            psi = blocks[i][i + 1] @ torch.linalg.inv(blocks[i + 1][i + 1])
            xi[i][i + 1] = -psi
            conditional = conditional - psi @ blocks[i + 1][i + 1] @ psi.T
        precision[i][i] = torch.linalg.inv(conditional)
    return assemble(xi).T @ assemble(precision) @ assemble(xi)


def gradient(model, x, y):
    loss = F.cross_entropy(model(x), y)
    found = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([joined(*found[2 * i : 2 * i + 2]) for i in range(len(found) // 2)])


def moved(model, before):
    steps = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    return torch.cat([joined(*steps[2 * i : 2 * i + 2]) for i in range(len(steps) // 2)])


class TestSteps:
    def test_running_means_and_inverse(self, batches):
        """Neighbours' moments get the weights of the factors: 1, 1/2, 1/3, then 1 − decay."""
        model = mlp()
        optimizer = chained(model, lr=0.1, damping=0.2, statistics_decay=0.6)
        mean = None
        for weight, (x, y) in zip((1, 1 / 2, 0.4, 0.4), batches, strict=True):
            model.eval()
            fresh = joint_moments(model, x)
            mean = fresh if mean is None else Statistics(
                *(
                    [[a.lerp(b, weight) for a, b in zip(*rows, strict=True)]
                     for rows in zip(old, new, strict=True)]
                    for old, new in ((mean.inputs, fresh.inputs), (mean.signals, fresh.signals))
                )
            )  # fmt: skip
            expected = -0.1 * dense_inverse(mean, 0.2) @ gradient(model, x, y)
            model.train()
            before = [p.detach().clone() for p in model.parameters()]
            train(optimizer, model, [(x, y)])
            torch.testing.assert_close(moved(model, before), expected, **TIGHT)
            inverse = optimizer.preconditioner
            for i in range(2):
                torch.testing.assert_close(inverse.input_pairs[i], mean.inputs[i][i + 1], **TIGHT)
                torch.testing.assert_close(inverse.signal_pairs[i], mean.signals[i][i + 1], **TIGHT)

    @pytest.mark.parametrize("kind", ["sampled", "empirical"])
    def test_other_kinds_train(self, kind, batches):
        model = mlp()
        optimizer = KFAC(
            model,
            likelihood="categorical",
            fisher=kind,
            inverse="block-tridiagonal",
            statistics_interval=1,
        )
        x, y = batches[0]
        first = float(F.cross_entropy(model(x), y).detach())
        train(optimizer, model, batches[:1] * 60)
        assert float(F.cross_entropy(model(x), y).detach()) < 0.8 * first
        for layer in optimizer.preconditioner.layers:
            assert layer.updates == 60

    def test_by_closures_too(self, batches):
        model = mlp()
        optimizer = KFAC(model, likelihood="categorical", inverse="block-tridiagonal")
        x, y = batches[0]
        losses = [float(optimizer.step(objective(model, x, y))) for _ in range(30)]
        assert losses[-1] < 0.5 * losses[0]

    def test_one_layer_is_a_chain(self, batches):
        """And the same as block-diagonal."""
        model = nn.Linear(3, 3)
        twin = copy.deepcopy(model)
        train(chained(model), model, batches)
        train(chained(twin, inverse="block-diagonal"), twin, batches)
        torch.testing.assert_close(snapshot(model), snapshot(twin), **TIGHT)

    def test_a_failure_leaves_the_old_inverse(self, batches, monkeypatch):
        model = mlp()
        optimizer = chained(model)
        train(optimizer, model, batches[:1])
        kept = optimizer.preconditioner.inverse

        def fails(*args):
            raise NumericalError("not positive definite")

        monkeypatch.setattr("npg.preconditioners.chain.TridiagonalInverse", fails)
        train(optimizer, model, batches[:2])
        assert optimizer.preconditioner.inverse is kept
        assert optimizer.preconditioner.kept == 2
        start = snapshot(model)
        with pytest.raises(NumericalError, match="3 times in a row: not positive"):
            train(optimizer, model, batches[:1])
        assert torch.equal(snapshot(model), start)
        monkeypatch.undo()
        train(optimizer, model, batches[:1])
        monkeypatch.setattr("npg.preconditioners.chain.TridiagonalInverse", fails)
        train(optimizer, model, batches[:2])  # counted from the start again


class TestState:
    def test_resumes_bit_for_bit(self, batches):
        model = mlp()
        options = {"statistics_interval": 2, "inverse_interval": 3, "fisher": "sampled"}
        optimizer = chained(model, **options)
        train(optimizer, model, batches)
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict()], file)
        train(optimizer, model, batches)
        other = mlp()
        resumed = chained(other, **options, seed=5)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        other.load_state_dict(weights)
        resumed.load_state_dict(state)
        train(resumed, other, batches)
        assert torch.equal(snapshot(model), snapshot(other))
        assert repr(optimizer.state_dict()) == repr(resumed.state_dict())

    def test_a_saved_one_does_not_change(self, batches):
        model = mlp()
        optimizer = chained(model)
        train(optimizer, model, batches)
        state = optimizer.preconditioner.state_dict()
        before = repr(state)
        train(optimizer, model, batches)
        assert repr(state) == before

    def test_of_an_inverse(self):
        factors = [torch.eye(2).mul(2.0), torch.eye(3)]
        pairs = [torch.full((2, 3), 0.1)]
        inverse = TridiagonalInverse(factors, factors, pairs, pairs, 0.1)
        other = TridiagonalInverse.restored(inverse.state(), torch.device("cpu"))
        given = [torch.randn(2, 2), torch.randn(3, 3)]
        assert torch.equal(flat(inverse.apply(given)), flat(other.apply(given)))
        assert (other.precision, other.jitter) == (inverse.precision, inverse.jitter)
