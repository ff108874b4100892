import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.curvature import Jacobian, math_attention
from npg.curvature.affine_chain import AffineChain
from npg.curvature.jacobian import GraphBlock
from npg.errors import ConfigurationError
from tests.npg.oracles import (
    CASES,
    TIGHT,
    Checkpointed,
    functional_jacobian,
    jacobian_by_rows,
    mlp,
    trained,
)


@pytest.fixture(params=sorted(CASES))
def case(request):
    return CASES[request.param]


def made(case):
    model, x = case.make()
    with math_attention():
        return model, x, model(x), trained(model)


class TestAllModels:
    def test_products_are_those_of_the_dense_jacobian(self, case):
        model, x, output, parameters = made(case)
        dense = jacobian_by_rows(output, parameters)
        if case.functional:
            torch.testing.assert_close(dense, functional_jacobian(model, x), **TIGHT)
        jacobian = Jacobian([output], parameters)
        for _ in range(2):  # the second finds the buffers used
            v, u = torch.randn(dense.shape[1]), torch.randn(output.shape)
            (tangent,) = jacobian.jvp(v)
            assert tangent.shape == output.shape
            torch.testing.assert_close(tangent.reshape(-1), dense @ v, **TIGHT)
            torch.testing.assert_close(jacobian.vjp([u]), dense.T @ u.reshape(-1), **TIGHT)

    def test_the_first_rows_alone(self, case):
        _, _, output, parameters = made(case)
        rows = max(1, len(output) // 2)
        kept = output[:rows].numel()
        dense = jacobian_by_rows(output, parameters)[:kept]
        jacobian = Jacobian([output], parameters, rows)
        v, u = torch.randn(dense.shape[1]), torch.randn(output[:rows].shape)
        (tangent,) = jacobian.jvp(v)
        assert tangent.shape == u.shape
        torch.testing.assert_close(tangent.reshape(-1), dense @ v, **TIGHT)
        torch.testing.assert_close(jacobian.vjp([u]), dense.T @ u.reshape(-1), **TIGHT)

    @pytest.mark.parametrize("name", ["tanh", "convolutions"])
    def test_chains_work_on_the_rows_alone(self, name):
        _, _, output, parameters = made(CASES[name])
        jacobian = Jacobian([output], parameters, 2)
        assert [type(block) for block, _ in jacobian.blocks] == [AffineChain]

    def test_chains_are_recognised_and_nothing_else(self, case):
        _, _, output, parameters = made(case)
        assert (AffineChain.recognise(output, parameters) is not None) == case.chain

    @pytest.mark.parametrize("name", sorted(name for name in CASES if CASES[name].chain))
    def test_a_chain_agrees_with_the_general_path(self, name):
        _, _, output, parameters = made(CASES[name])
        chain = AffineChain.recognise(output, parameters)
        graph = GraphBlock([output], parameters)
        v = [torch.randn_like(p) for p in parameters]
        u = torch.randn(output.shape)
        torch.testing.assert_close(chain.jvp(v)[0], graph.jvp(v)[0], **TIGHT)
        start = [torch.randn_like(p) for p in parameters]
        one, two = [s.clone() for s in start], [s.clone() for s in start]
        chain.add_vjp([u], one)
        graph.add_vjp([u], two)
        torch.testing.assert_close(one, two, **TIGHT)

    def test_products_leave_no_graph_and_no_gradient(self, case):
        _, _, output, parameters = made(case)
        jacobian = Jacobian([output], parameters)
        product = jacobian.vjp(jacobian.jvp(torch.ones(sum(p.numel() for p in parameters))))
        assert not product.requires_grad
        assert all(p.grad is None for p in parameters)


class TestChain:
    def test_does_not_change_with_the_parameters(self):
        model, x = mlp(), torch.randn(5, 3)
        jacobian = Jacobian([model(x)], trained(model))
        assert isinstance(jacobian.blocks[0][0], AffineChain)
        v, u = torch.randn(59), torch.randn(5, 3)
        before = jacobian.jvp(v)[0].clone(), jacobian.vjp([u]).clone()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1)
        torch.testing.assert_close(jacobian.jvp(v)[0], before[0], rtol=0, atol=0)
        torch.testing.assert_close(jacobian.vjp([u]), before[1], rtol=0, atol=0)

    @pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Sigmoid])
    def test_does_not_change_with_the_output(self, activation):
        """Autograd saved the very tensor that the caller holds."""
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), activation())
        output, parameters = model(torch.randn(5, 3)), trained(model)
        jacobian = Jacobian([output], parameters)
        v = torch.randn(sum(p.numel() for p in parameters))
        (before,) = jacobian.jvp(v)
        with torch.no_grad():
            output.zero_()
        torch.testing.assert_close(jacobian.jvp(v)[0], before)
        torch.testing.assert_close(jacobian.vjp([before]) @ v, before.square().sum())

    def test_mixed_precisions_are_promoted(self):
        half, single = nn.Linear(3, 4).bfloat16(), nn.Linear(4, 2).float()
        output = single(half(torch.randn(5, 3).bfloat16()).float())
        parameters = [*half.parameters(), *single.parameters()]
        product = Jacobian([output], parameters).vjp([torch.ones(5, 2)])
        expected = torch.autograd.grad(output.sum(), parameters)
        torch.testing.assert_close(product, torch.cat([g.reshape(-1).float() for g in expected]))

    def test_results_are_not_overwritten_by_the_next_product(self):
        for name in ("tanh", "linear", "activation on top", "sequence input", "log-softmax"):
            _, _, output, parameters = made(CASES[name])
            jacobian = Jacobian([output], parameters)
            size = sum(p.numel() for p in parameters)
            (first,) = jacobian.jvp(torch.ones(size))
            kept = first.clone()
            jacobian.jvp(torch.randn(size))
            jacobian.vjp([torch.randn(output.shape)])
            torch.testing.assert_close(first, kept, rtol=0, atol=0)

    @pytest.mark.parametrize("name", sorted(name for name in CASES if CASES[name].chain))
    def test_arguments_are_left_as_they_were(self, name):
        _, _, output, parameters = made(CASES[name])
        jacobian = Jacobian([output], parameters)
        v, u = torch.randn(sum(p.numel() for p in parameters)), torch.randn(output.shape)
        kept = v.clone(), u.clone()
        jacobian.jvp(v)
        jacobian.vjp([u])
        torch.testing.assert_close((v, u), kept, rtol=0, atol=0)

    def test_an_input_with_a_gradient_of_its_own_is_no_chain(self):
        model = mlp()
        output = model(torch.randn(5, 3, requires_grad=True))
        assert AffineChain.recognise(output, trained(model)) is None

    @pytest.mark.parametrize("part", [[0], [1], [2, 3], [4], [5], [0, 5]])
    def test_part_of_the_parameters(self, part):
        model, x = mlp(), torch.randn(5, 3)
        parameters = [trained(model)[i] for i in part]
        output = model(x)
        assert AffineChain.recognise(output, parameters) is not None
        dense = jacobian_by_rows(output, parameters)
        jacobian = Jacobian([output], parameters)
        v, u = torch.randn(dense.shape[1]), torch.randn(5, 3)
        torch.testing.assert_close(jacobian.jvp(v)[0].flatten(), dense @ v, **TIGHT)
        torch.testing.assert_close(jacobian.vjp([u]), dense.T @ u.flatten(), **TIGHT)

    def test_a_functional_loop_is_recognised_too(self):
        weights = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(2, 4))]
        output = F.linear(torch.tanh(F.linear(torch.randn(5, 3), weights[0])), weights[1])
        assert AffineChain.recognise(output, weights) is not None


class TestSeveralOutputs:
    def test_rows_are_stacked(self):
        """Mean through a chain, scale through a shared trunk and through a free parameter."""
        trunk, mean, scale = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        free, idle = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(3))
        parameters = [*trunk.parameters(), *mean.parameters(), *scale.parameters(), free, idle]
        hidden = torch.tanh(trunk(torch.randn(5, 3)))
        constant = torch.ones(5, 2)
        outputs = [mean(hidden), F.softplus(scale(hidden)), free.exp().expand(5, 2), constant]
        dense = [jacobian_by_rows(output, parameters) for output in outputs[:3]]
        jacobian = Jacobian(outputs, parameters)
        v, u = torch.randn(dense[0].shape[1]), [torch.randn(5, 2) for _ in outputs]
        tangents = jacobian.jvp(v)
        for tangent, block in zip(tangents, dense, strict=False):
            torch.testing.assert_close(tangent.flatten(), block @ v, **TIGHT)
        torch.testing.assert_close(tangents[3], torch.zeros(5, 2))
        expected = sum(block.T @ w.flatten() for block, w in zip(dense, u, strict=False))
        torch.testing.assert_close(jacobian.vjp(u), expected, **TIGHT)


class TestRefusals:
    def test_outputs_without_the_parameters(self):
        model = mlp()
        for output in (
            torch.ones(5, 3),
            mlp()(torch.randn(5, 3)),
            model(torch.ones(5, 3)).detach(),
        ):
            with pytest.raises(ConfigurationError, match="none of the parameters"):
                Jacobian([output], trained(model))

    def test_reentrant_checkpointing(self):
        """Its parameters are not in the graph: they would be taken for unused."""
        model = Checkpointed(reentrant=True)
        output = model(torch.randn(5, 3, requires_grad=True))
        with pytest.raises(ConfigurationError, match="use_reentrant=False"):
            Jacobian([output], trained(model))

    def test_a_general_matrix_is_not_silently_wrong_after_a_move(self):
        model = mlp(nn.Softplus)
        jacobian = Jacobian([model(torch.randn(5, 3))], trained(model))
        with torch.no_grad():
            model[0].weight.add_(1)
            model[2].weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            jacobian.jvp(torch.ones(59))


def test_runs_without_device_reads():
    """On the meta device nothing can be read back."""
    for activation in (nn.Tanh, nn.Softplus):
        model = mlp(activation).to("meta")
        jacobian = Jacobian([model(torch.empty(5, 3, device="meta"))], trained(model))
        assert jacobian.vjp(jacobian.jvp(torch.empty(59, device="meta"))).shape == (59,)
