"""Two evaluations of one function under the same conditions."""

import pytest
import torch
from torch import nn

from npg.curvature import SameConditions


def noisy():
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Linear(8, 3), nn.Dropout(0.2)
    )


def buffers(model):
    return [b.clone() for b in model.buffers()]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


class TestSameConditions:
    def test_a_second_evaluation_is_the_first(self):
        model, x = noisy(), torch.randn(10, 3)
        model(x)
        conditions = SameConditions(model)
        first = model(x)
        after = buffers(model)
        with conditions:
            assert torch.equal(model(x), first)
        assert same(buffers(model), after), "running statistics moved once"
        assert not torch.equal(model(x), first)

    def test_it_can_be_repeated(self):
        model, x = noisy(), torch.randn(10, 3)
        conditions = SameConditions(model)
        first = model(x)
        for _ in range(3):
            torch.randn(5)
            with conditions:
                assert torch.equal(model(x), first)
                torch.rand(7)

    def test_random_numbers_go_on_as_if_nothing_had_been(self):
        model, x = noisy(), torch.randn(10, 3)
        expected = []
        for inside in (False, True):
            torch.manual_seed(3)
            conditions = SameConditions(model)
            model(x)
            if inside:
                with conditions:
                    model(x)
                    torch.randn(100)
            expected.append(torch.randn(4))
        assert torch.equal(*expected)

    def test_an_exception_restores_too(self):
        model, x = noisy(), torch.randn(10, 3)
        conditions = SameConditions(model)
        model(x)
        after, generator = buffers(model), torch.get_rng_state()

        def fails():
            with conditions:
                model(x)
                raise KeyError

        with pytest.raises(KeyError):
            fails()
        assert same(buffers(model), after)
        assert torch.equal(torch.get_rng_state(), generator)

    def test_buffers_that_a_module_replaces(self):
        class Counting(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))
                self.register_buffer("nothing", None)

            def forward(self, x):
                self.calls = self.calls + 1  # a new tensor
                return x * self.calls

        model, x = nn.Sequential(Counting(), Counting()), torch.ones(2)
        conditions = SameConditions(model)
        first = model(x)
        kept = [module.calls for module in model]
        with conditions:
            assert torch.equal(model(x), first)
        assert [float(module.calls) for module in model] == [1.0, 1.0]
        assert all(module.calls is calls for module, calls in zip(model, kept, strict=True))
        model(x)
        assert [float(module.calls) for module in model] == [2.0, 2.0]

    def test_a_graph_from_inside_is_differentiated_outside(self):
        """Writing the old values into BatchNorm's buffers would spoil what its graph saved."""
        model, x = noisy(), torch.randn(10, 3)
        conditions = SameConditions(model)
        first = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        with conditions:
            loss = model(x).square().sum()
        torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), first)

    def test_a_buffer_that_two_modules_share(self):
        class Adding(nn.Module):
            def __init__(self, buffer):
                super().__init__()
                self.register_buffer("total", buffer)

            def forward(self, x):
                self.total.add_(1)
                return x + self.total

        shared, x = torch.zeros(()), torch.zeros(2)
        model = nn.Sequential(Adding(shared), Adding(shared))
        conditions = SameConditions(model)
        for _ in range(2):
            with conditions:
                assert torch.equal(model(x), torch.tensor([3.0, 3.0]))  # 0 + 1 + 2
        assert float(shared) == 0
        assert model[0].total is model[1].total is shared

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_on_a_gpu(self):
        model, x = noisy().cuda(), torch.randn(10, 3, device="cuda")
        conditions = SameConditions(model)
        first = model(x)
        with conditions:
            assert torch.equal(model(x), first)
        assert not torch.equal(model(x), first)
