"""Evaluating candidates: in batches and one by one alike, and never of another function."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.optim import EvolutionStrategies
from npg.optim.candidates import check_reads_slots
from npg.optim.objective import Objective
from npg.sampling import Displaced
from tests.npg.optim.search_problems import classifier, parameters_of, wrong

KINDS = [
    {},
    {"antithetic": False},
    {"adapt": "global"},
    {"adapt": "separable"},
    {"shaping": "none"},
]


def after(steps, model, closure, **options):
    optimizer = EvolutionStrategies(model, **{"candidates": 12, "lr": 0.1, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(steps):
            optimizer.step(closure)
    return parameters_of(model)


class TestEvaluation:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("chunk_size", [1, 2, 5, 8])
    def test_any_chunk_gives_the_same_steps(self, kind, chunk_size):
        model, x, y = classifier()
        twin = copy.deepcopy(model)
        whole = after(3, model, lambda: F.cross_entropy(model(x), y), **kind)
        parts = after(3, twin, lambda: F.cross_entropy(twin(x), y), chunk_size=chunk_size, **kind)
        torch.testing.assert_close(whole, parts)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_list_of_parameters_takes_them_in_place(self, kind):
        model, x, y = classifier()
        twin = copy.deepcopy(model)
        whole = after(3, model, lambda: F.cross_entropy(model(x), y), **kind)
        optimizer = EvolutionStrategies(twin.parameters(), 0.1, candidates=12, **kind)
        for _ in range(3):
            optimizer.step(lambda: F.cross_entropy(twin(x), y))
        torch.testing.assert_close(whole, parameters_of(twin))

    @pytest.mark.parametrize(
        "closure_of",
        [
            lambda model, x, y: lambda: float(wrong(model(x), y)),
            lambda model, x, y: lambda: wrong(model(x), y).item(),
        ],
    )
    def test_a_closure_that_vmap_cannot_run_is_run_in_place(self, closure_of):
        model, x, y = classifier()
        twin = copy.deepcopy(model)
        optimizer = EvolutionStrategies(model, 0.1, candidates=12)
        with pytest.warns(UserWarning, match="one after another"):
            optimizer.step(closure_of(model, x, y))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once is enough
            for _ in range(2):
                optimizer.step(closure_of(model, x, y))
        whole = after(3, twin, lambda: wrong(twin(x), y))
        torch.testing.assert_close(parameters_of(model), whole)

    def test_candidates_of_a_batch_draw_the_same_dropout_as_one_by_one(self):
        model, x, y = classifier()
        model = nn.Sequential(model[0], nn.Dropout(0.5), model[2])
        twin = copy.deepcopy(model)
        ends = []
        for net, chunk_size in ((model, None), (twin, 1)):
            torch.manual_seed(3)
            closure = lambda net=net: F.cross_entropy(net(x), y)  # noqa: E731
            ends.append(after(2, net, closure, chunk_size=chunk_size))
        torch.testing.assert_close(*ends)

    def test_shared_weights(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(3, 3, dtype=torch.float64)
                self.b = nn.Linear(3, 3, dtype=torch.float64)
                self.b.weight = self.a.weight

            def forward(self, x):
                return self.b(self.a(x).tanh())

        _, x, y = classifier()
        model = Tied()
        twin = copy.deepcopy(model)
        whole = after(2, model, lambda: F.cross_entropy(model(x), y))
        parts = after(2, twin, lambda: F.cross_entropy(twin(x), y), chunk_size=1)
        torch.testing.assert_close(whole, parts)

    def test_the_model_is_as_it_was_after_a_batch(self):
        model, x, y = classifier()
        kept = [id(p) for p in model.parameters()]
        after(1, model, lambda: F.cross_entropy(model(x), y))
        assert [id(p) for p in model.parameters()] == kept
        assert all(type(p) is nn.Parameter for p in model.parameters())


class Closures:
    """Closures that read parameters elsewhere than in the module that the optimizer has."""

    @staticmethod
    def captured(model, x, y):
        weight = model[0].weight
        return lambda: F.cross_entropy(model(x), y) + weight.square().sum()

    @staticmethod
    def penalty(model, x, y):
        parameters = list(model.parameters())
        return lambda: F.cross_entropy(model(x), y) + sum(p.square().sum() for p in parameters)

    @staticmethod
    def functional(model, x, y):
        parameters = dict(model.named_parameters())
        return lambda: F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

    @staticmethod
    def traced(model, x, y):
        other = torch.jit.trace(model, x)
        return lambda: F.cross_entropy(other(x), y)

    @staticmethod
    def wrapped(model, x, y):
        other = nn.Linear(3, 6, dtype=torch.float64)
        other.weight = model[0].weight
        return lambda: F.cross_entropy(model(x), y) + other(x).square().mean()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "closure_of",
    [
        Closures.captured,
        Closures.penalty,
        Closures.functional,
        Closures.traced,
        Closures.wrapped,
    ],
)
def test_parameters_that_are_read_elsewhere_are_found_out(closure_of):
    model, x, y = classifier()
    twin = copy.deepcopy(model)
    optimizer = EvolutionStrategies(model, 0.1, candidates=12)
    with pytest.warns(UserWarning, match="elsewhere than in the module"):
        optimizer.step(closure_of(model, x, y))
    parts = after(1, twin, closure_of(twin, x, y), chunk_size=1)
    torch.testing.assert_close(parameters_of(model), parts)


def test_an_lstm_keeps_its_weights_in_two_places():
    torch.manual_seed(1)
    model = nn.LSTM(3, 4, batch_first=True)
    twin = copy.deepcopy(model)
    x = torch.randn(5, 6, 3)
    optimizer = EvolutionStrategies(model, 0.1, candidates=12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step(lambda: model(x)[0].square().mean())
    parts = after(1, twin, lambda: twin(x)[0].square().mean(), chunk_size=1)
    torch.testing.assert_close(parameters_of(model), parts)


class TestModulesAreAsTheyWere:
    def check(self, model, closure, twin=None, other=None):
        kept = {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)}
        whole = after(2, model, closure)
        assert {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)} == kept
        assert all(type(p) is nn.Parameter for p in model.parameters())
        copy.deepcopy(model)
        if twin is not None:
            torch.testing.assert_close(whole, after(2, twin, other, chunk_size=1))

    def test_a_module_that_is_used_twice(self):
        _, x, y = classifier()
        layer = nn.Linear(3, 3, dtype=torch.float64)
        model = nn.Sequential(layer, nn.Tanh(), layer)
        twin = copy.deepcopy(model)
        self.check(
            model,
            lambda: F.cross_entropy(model(x), y),
            twin,
            lambda: F.cross_entropy(twin(x), y),
        )

    def test_a_closure_that_is_a_module(self):
        class Loss(nn.Module):
            def __init__(self, model, x, y):
                super().__init__()
                self.model, self.x, self.y = model, x, y

            def forward(self):
                return F.cross_entropy(self.model(self.x), self.y)

        model, x, y = classifier()
        self.check(model, Loss(model, x, y))
        loss = Loss(model, x, y)
        self.check(loss, loss)

    def test_a_closure_that_fails_inside_a_batch(self):
        model, x, y = classifier()
        start = parameters_of(model)
        calls = []

        def closure():
            calls.append(1)
            if len(calls) == 3:  # after the center, and a look at what it reads
                raise KeyboardInterrupt
            return F.cross_entropy(model(x), y)

        with pytest.raises(KeyboardInterrupt):
            EvolutionStrategies(model, candidates=12).step(closure)
        assert torch.equal(parameters_of(model), start)
        assert all(type(p) is nn.Parameter for p in model.parameters())
        assert len(calls) == 3


def test_a_look_at_what_is_read_puts_the_parameters_back():
    model, x, y = classifier()
    start = parameters_of(model)
    optimizer = EvolutionStrategies(model, candidates=12)
    objective = Objective(optimizer, lambda: F.cross_entropy(model(x), y))
    with torch.no_grad():
        expected = float(F.cross_entropy(model(x), y))
        check_reads_slots(objective, Displaced(optimizer.tensors()), expected)
    assert torch.equal(parameters_of(model), start)


def test_a_constant_objective_moves_nothing_and_says_so():
    model, *_ = classifier()
    start = parameters_of(model)
    report = EvolutionStrategies(model, candidates=12).step(lambda: torch.tensor(1.0))
    assert not report.accepted
    assert "the same objective" in report.reason
    assert torch.equal(parameters_of(model), start)
