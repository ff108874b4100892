"""EKFAC against per-sample gradients of autograd, and against curvlinops."""

import copy

import pytest
import torch
from curvlinops import EKFACLinearOperator
from torch import nn
from torch.nn import functional as F

from npg.curvature.kronecker import KroneckerFisher, MatrixBlock
from npg.errors import NumericalError
from npg.likelihoods import as_distribution, likelihood
from npg.preconditioners import EigenbasisInverse
from tests.npg.oracles import flat, mlp
from tests.npg.preconditioners.ekfac_oracle import (
    NETS,
    Mean,
    as_groups,
    dense_groups,
    kfac_and_ekfac,
    matrices,
    measured,
    score_roots,
)

EXACT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(params=NETS.values(), ids=NETS.keys())
def net(request):
    make, shape = request.param
    return make(), torch.randn(shape)


class TestMoments:
    @pytest.mark.parametrize("kind", ["exact", "empirical"])
    def test_are_the_diagonal_in_the_basis(self, net, kind):
        """S = diag(Qᵀ F Q) of F's own block: squares of whole gradients, columns summed."""
        model, x = net
        y = torch.randint(3, (len(x),))
        fisher, inverse = measured(model, x, kind, y)
        gradients = score_roots(model, x, kind, y)
        for i, block in enumerate(fisher.blocks):
            assert isinstance(block, MatrixBlock)
            inputs, signals = inverse.inverses[i]
            turned = signals.mT @ matrices(block, gradients) @ inputs
            torch.testing.assert_close(inverse.scales[i], turned.square().sum(0) / len(x), **EXACT)

    @pytest.mark.parametrize("kind", ["exact", "empirical"])
    def test_are_nearer_to_the_fisher_than_kfac(self, net, kind):
        """In the same basis S is the best diagonal, and K-FAC's is another."""
        model, x = net
        y = torch.randint(3, (len(x),))
        fisher, inverse = measured(model, x, kind, y)
        gradients = score_roots(model, x, kind, y)
        better = []
        for i, block in enumerate(fisher.blocks):
            dense = dense_groups(block, matrices(block, gradients), len(x))
            for f, (kfac, ekfac) in zip(dense, kfac_and_ekfac(block, inverse, i), strict=True):
                errors = [float(torch.linalg.norm(f - estimate)) for estimate in (kfac, ekfac)]
                assert errors[1] <= errors[0] * (1 + 1e-9)
                better.append(errors[1] < 0.999 * errors[0])
        assert any(better)

    def test_sampled_ones_are_of_the_labels_drawn(self):
        """In any basis Σ S is the mean squared norm of the samples' gradients."""
        model, x = mlp(), torch.randn(9, 3)
        fisher, inverse = measured(model, x, "sampled")
        generator = torch.Generator().manual_seed(3)  # as the estimator's
        prediction = as_distribution(model.eval()(x), "categorical")
        labels = likelihood(prediction).sample(prediction, generator).long()
        for i, block in enumerate(fisher.blocks):
            total = 0.0
            for n in range(len(x)):
                loss = F.cross_entropy(model(x[n : n + 1]), labels[n : n + 1])
                gradients = torch.autograd.grad(loss, block.parameters)
                total += sum(float(g.square().sum()) for g in gradients)
            assert float(inverse.scales[i].sum()) == pytest.approx(total / len(x), rel=1e-9)

    def test_running_means_have_the_weights_of_the_factors(self):
        model = mlp()
        batches = [torch.randn(n, 3) for n in (9, 5, 12)]
        fisher, inverse = measured(model, batches[0])
        expected = None
        for k, x in enumerate(batches):
            if k:
                measured(model, x, inverse=inverse, fisher=fisher)
            turned = [
                (inverse.inverses[i][1].mT @ matrices(block, score_roots(model, x, "exact", None))
                 @ inverse.inverses[i][0]).square().sum(0) / len(x)
                for i, block in enumerate(fisher.blocks)
            ]  # fmt: skip
            weight = 1 / (k + 1)
            expected = turned if expected is None else [
                (1 - weight) * old + weight * new for old, new in zip(expected, turned, strict=True)
            ]  # fmt: skip
        for i, scale in enumerate(expected):
            torch.testing.assert_close(inverse.scales[i], scale, **EXACT)


class TestApply:
    def test_is_the_dense_inverse(self, net):
        """Q_G (Q_Gᵀ V Q_A / (S + λ)) Q_Aᵀ. A public code projects with Q_G V Q_Aᵀ instead."""
        model, x = net
        fisher, inverse = measured(model, x)
        inverse.refresh(0.1)
        gradients = {p: torch.randn_like(p) for p in model.parameters()}
        found = inverse.apply(gradients)
        for i, block in enumerate(fisher.blocks):
            given = as_groups(block.layer.matrix([gradients[p] for p in block.parameters]))
            solved = as_groups(block.layer.matrix([found[p] for p in block.parameters]))
            estimates = kfac_and_ekfac(block, inverse, i)
            for v, u, (_, ekfac) in zip(given, solved, estimates, strict=True):
                damped = ekfac + 0.1 * torch.eye(len(ekfac))
                expected = torch.linalg.solve(damped, v.flatten())
                torch.testing.assert_close(u.flatten(), expected, **EXACT)

    def test_factors_that_are_multiples_of_the_identity(self):
        """Whatever basis eigh returns of these, S = a g and the product is V / (a g + λ)."""
        layer = nn.Linear(2, 2, bias=False)
        fisher = KroneckerFisher(layer, family="categorical", keep_rows=True)
        (block,) = fisher.blocks
        block.moments, block.updates = [3.0 * torch.eye(2), 0.5 * torch.eye(2)], 1
        # Signed unit vectors: rows √6 e_i, signals e_j, in all four combinations.
        rows = 6**0.5 * torch.eye(2).repeat_interleave(2, 0).unsqueeze(1)
        signals = torch.eye(2).repeat(2, 1).unsqueeze(1)
        inverse = EigenbasisInverse(fisher.blocks)
        inverse.follow([[(rows, [signals], 4)]], 0.95)
        inverse.refresh(0.1)
        gradient = torch.randn(2, 2)
        found = inverse.apply({layer.weight: gradient})[layer.weight]
        torch.testing.assert_close(found, gradient / (1.5 + 0.1), **EXACT)

    @pytest.mark.parametrize("sizes", ["whole", "one by one"])
    def test_memory_is_bounded_by_pieces(self, sizes, monkeypatch):
        model, x = Mean(), torch.randn(7, 5, 3)
        if sizes == "one by one":
            monkeypatch.setattr("npg.preconditioners.ekfac.CHUNK", 1)
        fisher, inverse = measured(model, x)
        gradients = score_roots(model, x, "exact", None)
        inputs, signals = inverse.inverses[0]
        turned = signals.mT @ matrices(fisher.blocks[0], gradients) @ inputs
        torch.testing.assert_close(inverse.scales[0], turned.square().sum(0) / 7, **EXACT)

    def test_embeddings_and_free_parameters_are_as_in_kfac(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 3)
                self.shift = nn.Parameter(torch.zeros(3))

            def forward(self, x):
                return self.head(self.embedding(x)) + self.shift

        model = Model()
        fisher, inverse = measured(model, torch.randint(5, (9,)))
        inverse.refresh(0.1)
        assert set(inverse.scales) == {1}
        found = inverse.apply({p: torch.ones_like(p) for p in model.parameters()})
        (free,) = fisher.blocks[2].moments
        expected = torch.linalg.solve(free + 0.1 * torch.eye(3), torch.ones(3))
        torch.testing.assert_close(found[model.shift], expected, **EXACT)


class TestBasis:
    def test_a_new_one_takes_the_diagonal_of_the_old_over(self):
        model = mlp()
        fisher, inverse = measured(model, torch.randn(9, 3))
        old = [kfac_and_ekfac(b, inverse, i)[0][1] for i, b in enumerate(fisher.blocks)]
        for block in fisher.blocks:  # other factors, other eigenvectors
            block.moments = [torch.cov(torch.randn(len(m), 2 * len(m))) for m in block.moments]
        inverse.refresh(0.1)
        for i, (block, dense) in enumerate(zip(fisher.blocks, old, strict=True)):
            ((_, new),) = kfac_and_ekfac(block, inverse, i)
            inputs, signals = inverse.inverses[i]
            for factor, vectors in zip(block.moments, (inputs, signals), strict=True):
                turned = vectors.T @ factor @ vectors
                torch.testing.assert_close(turned, turned.diag().diag(), **EXACT)
            basis = torch.kron(signals, inputs)
            expected = (basis.T @ dense @ basis).diagonal()
            torch.testing.assert_close(inverse.scales[i].flatten(), expected, **EXACT)
            assert float(new.trace()) == pytest.approx(float(dense.trace()))

    def test_one_that_stays_changes_nothing(self):
        fisher, inverse = measured(mlp(), torch.randn(9, 3))
        before = {i: s.clone() for i, s in inverse.scales.items()}
        inverse.refresh(0.1)
        for i, scale in before.items():
            torch.testing.assert_close(inverse.scales[i], scale, **EXACT)
        assert len(fisher.blocks) == len(before)

    def test_one_that_cannot_be_found(self, monkeypatch):
        fisher, inverse = measured(mlp(), torch.randn(9, 3))
        inverse.refresh(0.1)
        kept = copy.deepcopy(inverse.state_dict())

        def fails(*args):
            raise torch.linalg.LinAlgError("did not converge")

        monkeypatch.setattr(torch.linalg, "eigh", fails)
        for count in (1, 2):
            inverse.refresh(0.1)
            assert inverse.failures == [count] * 3
        assert inverse.kept == 6
        for name in ("inverses", "scales"):
            assert repr(inverse.state_dict()[name]) == repr(kept[name])
        with pytest.raises(NumericalError, match=r"3 times in a row.*damping="):
            inverse.refresh(0.1)
        fresh = EigenbasisInverse(fisher.blocks)
        rows = [[(torch.ones(1, 1, d), [torch.ones(1, 1, o)], 1)] for d, o in ((4, 4), (5, 5))]
        with pytest.raises(NumericalError, match="1 times in a row"):
            fresh.follow([*rows, rows[0]], 0.95)
        assert not fresh.ready

    def test_products_that_overflow_do_not_enter(self):
        fisher, inverse = measured(mlp(), torch.randn(9, 3))
        before = {i: s.clone() for i, s in inverse.scales.items()}
        rows = [
            [(torch.full((1, 1, b.moments[0].shape[0]), 1e100),
              [torch.full((1, 1, b.moments[1].shape[0]), 1e100)], 1)]
            for b in fisher.blocks
        ]  # fmt: skip
        inverse.follow(rows, 0.5)
        assert all(torch.isfinite(s).all() for s in inverse.scales.values())
        assert all(s.shape == before[i].shape for i, s in inverse.scales.items())


class TestCurvlinops:
    @pytest.mark.parametrize("kind", ["exact", "empirical"])
    @pytest.mark.parametrize("name", ["mlp", "no bias", "convolutions"])
    def test_is_their_matrix(self, name, kind):
        make, shape = NETS[name]
        model, x = make(), torch.randn(shape)
        y = torch.randint(3, (len(x),))
        unheard = copy.deepcopy(model)
        fisher, inverse = measured(model, x, kind, y)
        theirs = EKFACLinearOperator(
            unheard, nn.CrossEntropyLoss(), list(unheard.parameters()), [(x, y)],
            fisher_type={"exact": "type-2", "empirical": "empirical"}[kind],
            separate_weight_and_bias=False, check_deterministic=False,
        )  # fmt: skip
        for _ in range(3):
            vector = {p: torch.randn_like(p) for p in model.parameters()}
            product = theirs @ [v.clone() for v in vector.values()]
            expected = dict(zip(vector, product, strict=True))
            for i, block in enumerate(fisher.blocks):
                ((_, ours),) = kfac_and_ekfac(block, inverse, i)
                given = block.layer.matrix([vector[p] for p in block.parameters]).flatten()
                found = block.layer.matrix([expected[p] for p in block.parameters]).flatten()
                torch.testing.assert_close(ours @ given, found, rtol=1e-6, atol=1e-8)


class TestState:
    def test_goes_on_as_if_nothing_had_been(self):
        model = mlp()
        fisher, inverse = measured(model, torch.randn(9, 3))
        inverse.refresh(0.1)
        other = EigenbasisInverse(fisher.blocks)
        state = inverse.state_dict()
        other.load_state_dict(state)
        gradients = {p: torch.randn_like(p) for p in model.parameters()}
        assert torch.equal(
            flat(list(inverse.apply(gradients).values())),
            flat(list(other.apply(gradients).values())),
        )
        before = repr(state)
        measured(model, torch.randn(9, 3), inverse=inverse, fisher=fisher)
        assert repr(state) == before, "what was saved does not change"
        assert not torch.equal(inverse.scales[0], other.scales[0])
