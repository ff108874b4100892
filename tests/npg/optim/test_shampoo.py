"""Shampoo against torch's own methods, SciPy's matrix powers and full-matrix Adagrad."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.linalg import fractional_matrix_power
from torch import nn

from npg.errors import ConfigurationError, NumericalError
from npg.optim import Shampoo
from npg.preconditioners.shampoo import ShampooRoots
from tests.npg.oracles import TIGHT, mlp

METHODS = {
    "adam": (
        {"graft": "adam", "betas": (0.9, 0.95), "graft_epsilon": 1e-8},
        lambda p, **o: torch.optim.Adam(p, betas=(0.9, 0.95), **o),
    ),
    "adagrad": (
        {"graft": "adagrad", "betas": (0.0, 1.0), "graft_epsilon": 1e-10},
        lambda p, **o: torch.optim.Adagrad(p, **o),
    ),
    "rmsprop": (
        {"graft": "rmsprop", "betas": (0.0, 0.99), "graft_epsilon": 1e-8},
        lambda p, **o: torch.optim.RMSprop(p, alpha=0.99, **o),
    ),
    "sgd": ({"graft": "sgd", "betas": (0.0, 1.0)}, lambda p, **o: torch.optim.SGD(p, **o)),
}


def power(matrix, exponent):
    return torch.from_numpy(fractional_matrix_power(matrix.numpy(), exponent).real.copy())


class TestGrafting:
    @pytest.mark.parametrize("decay", [0.0, 0.1])
    @pytest.mark.parametrize("method", METHODS)
    def test_a_start_that_never_comes_is_torchs_method(self, method, decay):
        settings, theirs = METHODS[method]
        torch.manual_seed(1)
        model, twin = mlp(), mlp()
        twin.load_state_dict(model.state_dict())
        ours = Shampoo(
            model, 0.02, start_step=math.inf, weight_decay=decay, decoupled_weight_decay=False,
            **settings,
        )  # fmt: skip
        torchs = theirs(twin.parameters(), lr=0.02, weight_decay=decay)
        x = torch.randn(20, 3)
        for _ in range(12):
            for net, optimizer in ((model, ours), (twin, torchs)):
                optimizer.zero_grad()
                net(x).square().mean().backward()
                optimizer.step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, **TIGHT)

    def test_decoupled_decay_is_adamws(self):
        p, q = (nn.Parameter(torch.ones(2, 3)) for _ in range(2))
        ours = Shampoo([p], 0.1, (0.9, 0.99), start_step=math.inf, weight_decay=0.2)
        torchs = torch.optim.AdamW([q], 0.1, (0.9, 0.99), weight_decay=0.2)
        for _ in range(4):
            p.grad = q.grad = torch.randn(2, 3)
            ours.step()
            torchs.step()
        torch.testing.assert_close(p, q, **TIGHT)

    def test_blocks_have_the_grafted_steps_norms(self):
        p, q = (nn.Parameter(torch.zeros(4, 6)) for _ in range(2))
        ours = Shampoo([p], 1.0, (0.9, 0.99), block_size=3, merge_size=0)
        torchs = torch.optim.Adam([q], 1.0, (0.9, 0.99))
        p.grad = q.grad = torch.randn(4, 6)
        ours.step()
        torchs.step()
        for rows in (slice(0, 2), slice(2, 4)):
            for columns in (slice(0, 3), slice(3, 6)):
                a, b = p[rows, columns], q[rows, columns]
                assert not torch.allclose(a, b)
                torch.testing.assert_close(a.norm(), b.norm(), **TIGHT)


class TestRoots:
    @pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 4)])
    @pytest.mark.parametrize("decay", [1.0, 0.9])
    def test_is_the_product_of_scipys_roots(self, shape, decay):
        epsilon, lr = 1e-3, 0.1
        p = nn.Parameter(torch.zeros(shape))
        optimizer = Shampoo(
            [p], lr, (0.0, decay), epsilon, graft=None, root_interval=1, merge_size=0
        )
        moments = [torch.zeros(d, d) for d in shape]
        for t in range(1, 4):
            g = torch.randn(shape)
            p.grad = g.clone()
            before = p.detach().clone()
            optimizer.step()
            wanted = g
            for i, d in enumerate(shape):
                unfolded = g.movedim(i, 0).reshape(d, -1)
                outer = unfolded @ unfolded.T
                moments[i] = moments[i] + outer if decay == 1 else (
                    decay * moments[i] + (1 - decay) * outer
                )  # fmt: skip
                scale = 1.0 if decay == 1 else 1 / (1 - decay**t)
                root = power(moments[i] * scale + epsilon * torch.eye(d), -0.5 / len(shape))
                wanted = (root @ wanted.movedim(i, 0).reshape(d, -1)).reshape(
                    wanted.movedim(i, 0).shape
                ).movedim(0, i)  # fmt: skip
            torch.testing.assert_close(p.detach(), before - lr * wanted, rtol=1e-6, atol=1e-8)

    def test_a_vector_is_full_matrix_adagrad(self):
        p = nn.Parameter(torch.zeros(6))
        optimizer = Shampoo([p], 0.5, (0.0, 1.0), 1e-2, graft=None, root_interval=1)
        x, total = torch.zeros(6), 1e-2 * torch.eye(6)
        for _ in range(8):
            g = torch.randn(6)
            total = total + torch.outer(g, g)
            x = x - 0.5 * power(total, -0.5) @ g
            p.grad = g
            optimizer.step()
        torch.testing.assert_close(p.detach(), x, rtol=1e-6, atol=1e-8)

    def test_blocks_are_tensors_of_their_own(self):
        whole = nn.Parameter(torch.zeros(4, 6))
        parts = [nn.Parameter(torch.zeros(2, 3)) for _ in range(4)]
        settings = {"lr": 0.1, "merge_size": 0, "root_interval": 2}
        one, many = Shampoo([whole], block_size=3, **settings), Shampoo(parts, **settings)
        for _ in range(5):
            whole.grad = torch.randn(4, 6)
            for i, part in enumerate(parts):
                part.grad = whole.grad[2 * (i // 2) :][:2, 3 * (i % 2) :][:, :3].clone()
            one.step()
            many.step()
        joined = torch.cat([torch.cat(parts[:2], 1), torch.cat(parts[2:], 1)])
        torch.testing.assert_close(whole, joined, **TIGHT)

    def test_dimensions_are_merged(self):
        p, q = nn.Parameter(torch.zeros(2, 3, 1, 5)), nn.Parameter(torch.zeros(6, 5))
        one, other = Shampoo([p], merge_size=6), Shampoo([q], merge_size=6)
        for _ in range(3):
            p.grad = torch.randn(2, 3, 1, 5)
            q.grad = p.grad.view(6, 5).clone()
            one.step()
            other.step()
        torch.testing.assert_close(p.view(6, 5), q, **TIGHT)

    @pytest.mark.parametrize("start", [1, 3])
    def test_the_start_and_the_interval(self, start):
        """Roots are those of the first step and of every third; before the start it is Adam."""
        p, q = (nn.Parameter(torch.zeros(3, 3)) for _ in range(2))
        ours = Shampoo([p], 0.1, (0.9, 0.99), root_interval=3, start_step=start)
        torchs = torch.optim.Adam([q], 0.1, (0.9, 0.99))
        roots = []
        for t in range(1, 7):
            p.grad = q.grad = torch.randn(3, 3)
            ours.step()
            torchs.step()
            roots.append(ours.state[p]["roots"][0])
            assert torch.allclose(p, q, rtol=1e-9) == (t < start)
        changes = [not torch.equal(a, b) for a, b in pairwise(roots)]
        assert changes == [False, True, False, False, True]


class TestFaults:
    def test_an_eigendecomposition_that_fails(self, monkeypatch):
        """Twice the last roots go on; the third time says so, and moves nothing."""
        p = nn.Parameter(torch.zeros(3, 3))
        optimizer = Shampoo([p], 0.1, root_interval=1, weight_decay=0.1)
        p.grad = torch.randn(3, 3)
        optimizer.step()

        def fails(*_):
            raise torch.linalg.LinAlgError("no")

        monkeypatch.setattr(torch.linalg, "eigh", fails)
        for _ in range(2):
            before = p.detach().clone()
            optimizer.step()
            assert not torch.equal(p, before)
            assert torch.isfinite(p).all()
        before = p.detach().clone()
        with pytest.raises(NumericalError, match="3 times in a row"):
            optimizer.step()
        assert torch.equal(p, before)

    def test_a_moment_without_a_root_spoils_no_other_of_its_batch(self):
        p, q = (nn.Parameter(torch.zeros(3, 3)) for _ in range(2))
        alone = nn.Parameter(torch.zeros(3, 3))
        both, one = Shampoo([p, q], 0.1, root_interval=1), Shampoo([alone], 0.1, root_interval=1)
        for i in range(2):
            p.grad, q.grad = torch.randn(3, 3), torch.randn(3, 3)
            alone.grad = q.grad.clone()
            if i == 1:
                kept = [root.clone() for root in both.state[p]["roots"]]
                both.state[p]["moments"][0].fill_(math.nan)
            both.step()
            one.step()
        torch.testing.assert_close(q, alone, **TIGHT)
        assert all(torch.equal(a, b) for a, b in zip(both.state[p]["roots"], kept, strict=True))
        assert (both.state[p]["failures"], both.state[q]["failures"]) == (1, 0)
        assert torch.isfinite(p).all()

    def test_low_precision_keeps_wide_moments(self):
        p = nn.Parameter(torch.zeros(3, 4, dtype=torch.bfloat16))
        optimizer = Shampoo([p], 0.1)
        p.grad = torch.randn(3, 4, dtype=torch.bfloat16)
        optimizer.step()
        assert {m.dtype for m in optimizer.state[p]["moments"]} == {torch.float32}
        other = Shampoo([nn.Parameter(torch.zeros(3, 4, dtype=torch.bfloat16))], 0.1)
        other.load_state_dict(optimizer.state_dict())
        (state,) = other.state.values()
        for a, b in zip(state["moments"], optimizer.state[p]["moments"], strict=True):
            assert a.dtype == torch.float32
            assert torch.equal(a, b)

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"graft": "lion"}, "graft must be"),
            ({"block_size": 0}, "block_size"),
            ({"root_interval": 0}, "root_interval"),
            ({"start_step": 0}, "start_step"),
            ({"graft": None, "start_step": 5}, "start_step= needs graft="),
            ({"betas": (1.0, 0.9)}, "betas"),
            ({"epsilon": -1.0}, "epsilon must be in"),
        ],
    )
    def test_settings(self, settings, words):
        with pytest.raises(ConfigurationError, match=words):
            Shampoo([nn.Parameter(torch.zeros(2))], **settings)

    def test_a_tensor_without_entries(self):
        roots = ShampooRoots(Shampoo([nn.Parameter(torch.zeros(2))])._roots(
            {"betas": (0.9, 0.9), "epsilon": 1e-8}, torch.zeros(0, 3)
        ).partition, 0.9, 1e-8)  # fmt: skip
        assert roots.partition.shapes == []
        assert roots.partition.join(roots.partition.cut(torch.zeros(0, 3))).shape == (0, 3)
