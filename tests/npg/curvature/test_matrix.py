import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from npg.curvature import Fisher, Hessian
from npg.errors import ConfigurationError
from tests.npg.oracles import TIGHT, Tied, classifier, flat, mlp


@pytest.fixture
def model():
    return mlp()


@pytest.fixture
def x():
    return torch.randn(7, 3)


def fisher(model, x, **options):
    return Fisher(model, lambda: Categorical(logits=model(x)), **options)


class TestForms:
    def test_flat_columns_and_mapping_agree(self, model, x):
        matrix = fisher(model, x)
        dense = matrix.to_dense()
        v = torch.randn(59, 4)
        torch.testing.assert_close(matrix @ v, dense @ v, **TIGHT)
        torch.testing.assert_close(matrix @ v[:, 0], dense @ v[:, 0], **TIGHT)
        named = {n: torch.randn_like(p) for n, p in model.named_parameters()}
        product = matrix @ named
        assert list(product) == [n for n, _ in model.named_parameters()]
        assert all(product[n].shape == p.shape for n, p in model.named_parameters())
        expected = dense @ flat(named.values())
        torch.testing.assert_close(flat(product.values()), expected, **TIGHT)
        backwards = dict(reversed(named.items()))
        torch.testing.assert_close(flat((matrix @ backwards).values()), expected, **TIGHT)

    def test_the_vector_is_left_as_it_was(self, model, x):
        for matrix in (fisher(model, x), fisher(model, x) + 0.5):
            v = torch.randn(59)
            kept = v.clone()
            product = matrix @ v
            assert torch.equal(v, kept)
            assert product.data_ptr() != v.data_ptr()
            assert torch.equal(matrix @ v, product)

    def test_parameters_given_as_tensors_are_numbered(self, model, x):
        matrix = Fisher(model.parameters(), lambda: Categorical(logits=model(x)))
        assert matrix.names == ("0", "1", "2", "3", "4", "5")
        torch.testing.assert_close(matrix.to_dense(), fisher(model, x).to_dense(), **TIGHT)

    @pytest.mark.parametrize("shape", [(58,), (60,), (58, 2), (59, 2, 2), (1, 59)])
    def test_wrong_shapes(self, model, x, shape):
        with pytest.raises(ConfigurationError, match=r"shape \[59\] or \[59, K\]"):
            fisher(model, x) @ torch.ones(shape)

    def test_wrong_names(self, model, x):
        named = {n: torch.randn_like(p) for n, p in model.named_parameters()}
        named.pop("0.bias")
        with pytest.raises(ConfigurationError, match=r"keys must be.*0\.bias"):
            fisher(model, x) @ named


class TestSummaries:
    def test_diagonal_trace_and_shape(self, model, x):
        matrix = fisher(model, x)
        dense = matrix.to_dense()
        assert matrix.shape == dense.shape == (59, 59)
        torch.testing.assert_close(matrix.diagonal(), dense.diagonal(), **TIGHT)
        torch.testing.assert_close(matrix.trace(), dense.trace(), **TIGHT)
        assert torch.equal(dense, dense.T)
        assert float(torch.linalg.eigvalsh(dense)[0]) > -1e-12

    def test_damping(self, model, x):
        matrix = fisher(model, x)
        dense = matrix.to_dense()
        eye = torch.eye(59)
        damped = matrix + 0.25
        v = torch.randn(59)
        torch.testing.assert_close(damped @ v, dense @ v + 0.25 * v, **TIGHT)
        torch.testing.assert_close(damped.to_dense(), dense + 0.25 * eye, **TIGHT)
        torch.testing.assert_close(damped.diagonal(), dense.diagonal() + 0.25, **TIGHT)
        torch.testing.assert_close(damped.trace(), dense.trace() + 0.25 * 59, **TIGHT)
        torch.testing.assert_close((damped + 0.5).to_dense(), dense + 0.75 * eye, **TIGHT)
        torch.testing.assert_close((matrix + 0).to_dense(), dense, **TIGHT)
        assert damped.shape == (59, 59)
        named = {n: torch.ones_like(p) for n, p in model.named_parameters()}
        torch.testing.assert_close(
            flat((damped @ named).values()), damped @ torch.ones(59), **TIGHT
        )

    @pytest.mark.parametrize("damping", [-1e-3, float("nan")])
    def test_negative_damping(self, model, x, damping):
        with pytest.raises(ConfigurationError, match="must not be negative"):
            fisher(model, x) + damping


class TestParameters:
    def test_a_part_is_a_principal_block(self, model, x):
        full = fisher(model, x).to_dense()
        part = fisher(model, x, parameters=[model[4].weight, model[0].bias])
        index = [*range(12, 16), *range(41, 56)]
        assert part.names == ("0.bias", "4.weight"), "the model's order, not the argument's"
        torch.testing.assert_close(part.to_dense(), full[index][:, index], **TIGHT)

    def test_frozen_parameters_are_left_out(self, model, x):
        full = fisher(model, x).to_dense()
        model[0].weight.requires_grad_(False)
        torch.testing.assert_close(fisher(model, x).to_dense(), full[12:, 12:], **TIGHT)
        part = fisher(model, x, parameters=model[0].parameters())
        assert part.names == ("0.bias",)
        torch.testing.assert_close(part.to_dense(), full[12:16, 12:16], **TIGHT)

    def test_unused_parameters_have_zero_rows(self, model, x):
        model.extra = nn.Identity()  # a child that is called, with a parameter that is not used
        model.extra.weight = nn.Parameter(torch.ones(2))
        dense = fisher(model, x).to_dense()
        assert dense.shape == (61, 61)
        assert not dense[59:].any()
        dense = Hessian(model, lambda: F.mse_loss(model(x), x)).to_dense()
        assert not dense[59:].any()

    def test_tied_parameters_count_once(self, x):
        assert fisher(Tied(), x).shape == (12, 12)
        model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
        model[2].weight = model[0].weight
        assert fisher(model, x).names == ("0.weight", "0.bias", "2.bias")

    def test_none_or_foreign_ones_are_refused(self, model, x):
        other = mlp()
        foreign = [other[0].weight, model[0].weight]
        for parameters in ([], other.parameters(), foreign):
            with pytest.raises(ConfigurationError, match="parameters="):
                fisher(model, x, parameters=parameters)
        model.requires_grad_(False)
        with pytest.raises(ConfigurationError, match="require a gradient"):
            fisher(model, x)


def test_a_model_in_training_is_not_touched():
    model, x, _ = classifier()
    model.train()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    fisher(model, x).to_dense()
    assert model.training
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
