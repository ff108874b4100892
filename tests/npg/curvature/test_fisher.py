"""Fisher matrices of classifiers, against dense ones and curvlinops: kinds, weights, refusals."""

import math

import pytest
import torch
from curvlinops import EFLinearOperator, GGNLinearOperator
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from npg.curvature import Fisher, Jacobian, math_attention
from npg.errors import ConfigurationError
from npg.likelihoods import as_distribution
from tests.npg.oracles import (
    CASES,
    TIGHT,
    categorical_fisher,
    categorical_kl,
    classifier,
    functional_hessian,
    jacobian_by_rows,
    mlp,
    trained,
)


def of_logits(model, x, **options):
    return Fisher(model, lambda: Categorical(logits=model(x), validate_args=False), **options)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"sequence input", "single input"}))
def test_exact_fisher_of_every_model(name):
    model, x = CASES[name].make()
    fisher = of_logits(model, x)
    with math_attention():
        logits = model(x)
    expected = categorical_fisher(jacobian_by_rows(logits, trained(model)), logits.detach())
    torch.testing.assert_close(fisher.to_dense(), expected, **TIGHT)
    if CASES[name].functional:
        by_kl = functional_hessian(model, x, lambda z: categorical_kl(logits.detach(), z))
        if "log-softmax" not in name and name != "rounded":  # its KL has kinks
            torch.testing.assert_close(expected, by_kl, **TIGHT)


@pytest.mark.parametrize("name", ["sequence input", "single input"])
def test_every_element_of_the_batch_is_one_sample(name):
    model, x = CASES[name].make()
    logits = model(x)
    expected = categorical_fisher(jacobian_by_rows(logits, trained(model)), logits.detach())
    torch.testing.assert_close(of_logits(model, x).to_dense(), expected, **TIGHT)


class TestSecondOracle:
    """curvlinops' matrices."""

    @pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
    def test_exact_is_the_ggn_of_cross_entropy(self, activation):
        model, x, y = mlp(activation), torch.randn(7, 3), torch.randint(3, (7,))
        params = trained(model)
        theirs = GGNLinearOperator(model, nn.CrossEntropyLoss(), params, [(x, y)])
        dense = theirs @ torch.eye(59)
        torch.testing.assert_close(of_logits(model, x).to_dense(), dense, **TIGHT)

    def test_empirical(self):
        model, x, y = classifier()
        params = trained(model)
        theirs = EFLinearOperator(model, nn.CrossEntropyLoss(), params, [(x, y)])
        ours = of_logits(model, x, kind="empirical", targets=y)
        torch.testing.assert_close(ours.to_dense(), theirs @ torch.eye(59), **TIGHT)

    def test_bernoulli(self):
        model, x, y = mlp(), torch.randn(7, 3), torch.rand(7, 3).round()
        params = trained(model)
        loss = nn.BCEWithLogitsLoss()  # a mean over 3 outputs too
        theirs = GGNLinearOperator(model, loss, params, [(x, y)])
        ours = Fisher(model, lambda: as_distribution(model(x), "bernoulli"))
        torch.testing.assert_close(ours.to_dense() / 3, theirs @ torch.eye(59), **TIGHT)

    @pytest.mark.parametrize("outputs", [1, 3])
    def test_mse(self, outputs):
        """likelihood="mse" has the Gauss–Newton matrix of MSELoss, at any number of outputs."""
        model, x = nn.Linear(3, outputs), torch.randn(7, 3)
        y = torch.randn(7, outputs)
        params = trained(model)
        theirs = GGNLinearOperator(model, nn.MSELoss(), params, [(x, y)])
        ours = Fisher(model, lambda: as_distribution(model(x), "mse"))
        expected = theirs @ torch.eye(4 * outputs)
        torch.testing.assert_close(ours.to_dense(), expected, **TIGHT)


class TestKinds:
    def test_same_seed_same_matrix_and_one_object_is_one_matrix(self):
        model, x, _ = classifier()

        def draw(seed):
            generator = torch.Generator().manual_seed(seed)
            return of_logits(model, x, kind="sampled", generator=generator)

        one = draw(1)
        dense = one.to_dense()
        torch.testing.assert_close(one.to_dense(), dense, rtol=0, atol=0)
        torch.testing.assert_close(draw(1).to_dense(), dense, rtol=0, atol=0)
        assert not torch.allclose(draw(2).to_dense(), dense)

    def test_kinds_differ(self):
        model, x, y = classifier()
        exact, empirical = of_logits(model, x), of_logits(model, x, kind="empirical", targets=y)
        assert not torch.allclose(exact.to_dense(), empirical.to_dense(), rtol=0.1)

    def test_empirical_is_at_the_targets_given(self):
        model, x, y = classifier()
        one = of_logits(model, x, kind="empirical", targets=y).to_dense()
        other = of_logits(model, x, kind="empirical", targets=(y + 1) % 3).to_dense()
        assert not torch.allclose(one, other)

    def test_a_prediction_with_its_graph(self):
        model, x, _ = classifier()
        prediction = Categorical(logits=model(x))
        dense = Fisher(model, prediction).to_dense()
        torch.testing.assert_close(dense, of_logits(model, x).to_dense(), rtol=0, atol=0)

    def test_the_prediction_is_evaluated_once_and_under_no_grad_too(self):
        model, x, _ = classifier()
        calls = []

        def predict():
            calls.append(1)
            return Categorical(logits=model(x))

        with torch.no_grad():
            fisher = Fisher(model, predict)
            dense = fisher.to_dense()
        assert len(calls) == 1
        torch.testing.assert_close(dense, of_logits(model, x).to_dense(), rtol=0, atol=0)

    def test_it_is_the_matrix_of_the_moment_it_was_made(self):
        """Also where the distribution's tensors are the parameters' own memory."""
        mean = nn.Linear(3, 2)
        sigma = nn.Parameter(torch.tensor([0.5, 2.0]))
        x = torch.randn(6, 3)

        def predict():
            return Independent(Normal(mean(x), sigma.expand(6, 2)), 1)

        fisher = Fisher([*mean.parameters()], predict)
        before = fisher.to_dense()
        with torch.no_grad():
            for parameter in (*mean.parameters(), sigma):
                parameter.mul_(3)
        torch.testing.assert_close(fisher.to_dense(), before, rtol=0, atol=0)


class TestWeights:
    def test_mean_is_over_the_weights(self):
        model, x, _ = classifier()
        w = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.5, 0.0, 3.0])
        expected = sum(
            float(w[i]) * of_logits(model, x[i : i + 1]).to_dense() for i in range(7)
        ) / float(w.sum())
        torch.testing.assert_close(of_logits(model, x, weights=w).to_dense(), expected, **TIGHT)
        for options in ({"kind": "empirical", "targets": torch.arange(7) % 3},):
            one = of_logits(model, x, weights=w, **options).to_dense()
            keep = w > 0
            part = {**options, "targets": options["targets"][keep]}
            two = of_logits(model, x[keep], weights=w[keep], **part).to_dense()
            torch.testing.assert_close(one, two, **TIGHT)

    @pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32, torch.float64])
    @pytest.mark.parametrize("precision", [torch.float32, torch.float64])
    def test_of_any_dtype(self, kind, precision):
        torch.set_default_dtype(torch.float32)
        model, x = mlp().to(precision), torch.randn(7, 3, dtype=precision)
        w = torch.tensor([1, 0, 1, 0, 0, 0, 1])
        found = of_logits(model, x, weights=w.to(kind)).to_dense()
        assert found.dtype == precision
        expected = of_logits(model, x[w.bool()]).to_dense()
        rtol = 1e-12 if precision == torch.float64 else 1e-5
        torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)

    def test_one_per_element_of_the_batch(self):
        model, x = mlp(), torch.randn(2, 4, 3)
        w = torch.rand(2, 4)
        expected = of_logits(model, x.reshape(8, 3), weights=w.flatten()).to_dense()
        torch.testing.assert_close(of_logits(model, x, weights=w).to_dense(), expected, **TIGHT)

    @pytest.mark.parametrize(
        ("weights", "words"),
        [
            (torch.ones(6), "one entry per sample"),
            (torch.ones(7, 1), "one entry per sample"),
            (torch.zeros(7), "not all zero"),
            (torch.tensor([1.0, 1, 1, 1, 1, 1, -1]), "not be negative"),
            (torch.full((7,), math.nan), "not all zero"),
        ],
    )
    def test_refusals(self, weights, words):
        model, x, _ = classifier()
        with pytest.raises(ConfigurationError, match=words):
            of_logits(model, x, weights=weights)


class TestRefusals:
    def test_the_first_rows(self):
        model, x = mlp(), torch.randn(7, 3)
        few = of_logits(model, x, rows=4)
        torch.testing.assert_close(few.to_dense(), of_logits(model, x[:4]).to_dense(), **TIGHT)
        for wrong in ({"rows": 0}, {"rows": 8}, {"rows": 4, "weights": torch.ones(7)}):
            with pytest.raises(ConfigurationError, match="rows="):
                of_logits(model, x, **wrong)

    def test_arguments(self):
        model, x, y = classifier()
        with pytest.raises(ConfigurationError, match="kind must be"):
            of_logits(model, x, kind="true")
        with pytest.raises(ConfigurationError, match="without targets"):
            of_logits(model, x, kind="empirical")
        for kind in ("exact", "sampled"):
            with pytest.raises(ConfigurationError, match="with targets"):
                of_logits(model, x, kind=kind, targets=y)

    def test_a_prediction_that_does_not_depend_on_the_parameters(self):
        model, x, _ = classifier()
        with pytest.raises(ConfigurationError, match="none of the parameters"):
            Fisher(model, Categorical(logits=model(x).detach()))
        with torch.no_grad():
            prediction = Categorical(logits=model(x))
        with pytest.raises(ConfigurationError, match="gradients enabled"):
            Fisher(model, prediction)

    def test_no_samples(self):
        model = mlp()
        with pytest.raises(ConfigurationError, match="no samples"):
            of_logits(model, torch.zeros(0, 3))

    def test_an_ambiguous_normal(self):
        model, x, _ = classifier()
        with pytest.raises(ConfigurationError, match="ambiguous"):
            Fisher(model, lambda: Normal(model(x), torch.ones(7, 3)))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ELU])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_float32_agrees_with_float64(activation, kind):
    model, x, y = mlp(activation), torch.randn(50, 3), torch.randint(3, (50,))
    options = {"kind": kind, "targets": y} if kind == "empirical" else {}
    double = of_logits(model, x, **options).to_dense()
    single = of_logits(model.float(), x.float(), **options).to_dense()
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-6)


def test_parameters_that_the_closure_holds_in_a_list():
    """A trap of functional calls: they see registered parameters only."""
    hidden = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 4))]
    x = torch.randn(5, 3)

    def logits():
        return torch.tanh(x @ hidden[0].T) @ hidden[1].T

    found = Fisher(hidden, lambda: Categorical(logits=logits())).to_dense()
    expected = categorical_fisher(jacobian_by_rows(logits(), hidden), logits().detach())
    torch.testing.assert_close(found, expected, **TIGHT)


def test_products_use_the_hand_written_path_for_a_policy():
    """Categorical's own normalisation does not hide the chain."""
    model, x, _ = classifier()
    from npg.curvature.affine_chain import AffineChain

    jacobian: Jacobian = of_logits(model, x).jacobian
    assert [type(block) for block, _ in jacobian.blocks] == [AffineChain]


def test_runs_without_device_reads():
    model, x = mlp().to("meta"), torch.empty(5, 3, device="meta")
    fisher = of_logits(model, x)
    assert (fisher + 0.1).matvec(torch.empty(59, device="meta")).shape == (59,)
