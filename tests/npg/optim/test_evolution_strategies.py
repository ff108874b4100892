"""Evolution strategies: one estimate, however candidates are evaluated."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import EvolutionStrategies
from npg.sampling import shaped
from tests.npg.optim.search_problems import Point, classifier, parameters_of, wrong

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


class TestEstimate:
    @pytest.mark.parametrize("shaping", ["ranks", "utilities", "none"])
    def test_is_its_formula(self, shaping):
        model, *_ = classifier()
        start = parameters_of(model)
        optimizer = EvolutionStrategies(model, 0.3, candidates=10, sigma=0.2, shaping=shaping)
        rows = optimizer.ask()
        objectives = torch.randn(10, dtype=torch.float64)
        report = optimizer.tell(objectives)
        noise = (rows - start) / 0.2
        torch.testing.assert_close(noise[::2], -noise[1::2])
        gradient = shaped(objectives, shaping) @ noise / (10 * 0.2)
        torch.testing.assert_close(parameters_of(model), start - 0.3 * gradient)
        assert report.gradient_norm == pytest.approx(float(gradient.norm()))
        assert (report.candidates, report.dropped, report.sigma) == (10, 0, 0.2)

    @pytest.mark.parametrize("adapt", ["global", "separable"])
    def test_the_natural_gradient_of_the_gaussian(self, adapt):
        # torch's log-density differentiated, and the Fisher matrix of (μ, log σ): 1/σ² and 2, per
        # parameter.
        model, *_ = classifier()
        start = parameters_of(model)
        optimizer = EvolutionStrategies(
            model, 0.3, candidates=10, sigma=0.2, adapt=adapt, sigma_lr=0.5
        )
        rows = optimizer.ask()
        objectives = torch.randn(10, dtype=torch.float64)
        weights = shaped(objectives, "ranks") / 10
        optimizer.tell(objectives)
        mean = start.clone().requires_grad_()
        size = len(start) if adapt == "separable" else 1
        log_sigma = torch.full((size,), math.log(0.2), dtype=torch.float64, requires_grad=True)
        density = torch.distributions.Normal(mean, log_sigma.exp()).log_prob(rows).sum(1)
        of_mean, of_sigma = torch.autograd.grad(weights @ density, [mean, log_sigma])
        information = 2.0 if adapt == "separable" else 2.0 * len(start)
        torch.testing.assert_close(parameters_of(model), start - 0.3 * 0.04 * of_mean)
        expected = 0.2 * (-0.5 * of_sigma / information).exp()
        found = (
            torch.cat([d.reshape(-1) for d in optimizer.deviation.each])
            if adapt == "separable"
            else torch.tensor([optimizer.deviation.sigma], dtype=torch.float64)
        )
        torch.testing.assert_close(found, expected)

    def test_dropped_candidates_do_not_count(self):
        model, *_ = classifier()
        start = parameters_of(model)
        optimizer = EvolutionStrategies(model, 1.0, candidates=6, antithetic=False, shaping="none")
        rows = optimizer.ask()
        objectives = torch.tensor([1.0, math.nan, 3.0, math.inf, -2.0, 5.0], dtype=torch.float64)
        report = optimizer.tell(objectives)
        kept = [0, 2, 4, 5]
        noise = ((rows - start) / 0.05)[kept]
        values = objectives[kept]
        others = (values.sum() - values) / 3  # the mean of the others
        gradient = (values - others) @ noise / (4 * 0.05)
        torch.testing.assert_close(parameters_of(model), start - gradient)
        assert report.dropped == 2

    @pytest.mark.parametrize("adapt", ["global", "separable"])
    def test_adapting_goes_on_where_a_fixed_deviation_stops(self, adapt):
        ends = {}
        for kind in ("none", adapt):
            point = Point(torch.ones(5, dtype=torch.float64))
            optimizer = EvolutionStrategies(
                point,
                0.02 if kind == "none" else 3.0,
                adapt=kind,
                sigma=0.3,
                sigma_lr=1.0,
                candidates=32,
            )
            for _ in range(150):
                optimizer.step(lambda point=point: point().square().sum())
            ends[kind] = float(parameters_of(point).norm())
        assert ends[adapt] < 1e-3 * ends["none"]

    def test_learns_a_metric_without_a_gradient(self):
        model, x, y = classifier()
        before = float(wrong(model(x), y))
        optimizer = EvolutionStrategies(model, 0.05, candidates=32)
        for _ in range(40):
            report = optimizer.step(lambda: wrong(model(x), y))
        assert float(wrong(model(x), y)) < 0.4 * before
        assert report.loss == report.objective
        assert report.evaluations == 33


class TestAskAndTell:
    def test_are_what_step_does(self):
        model, x, y = classifier()
        twin = copy.deepcopy(model)
        optimizer = EvolutionStrategies(twin.parameters(), 0.1, candidates=12)
        stepped = after(3, model, lambda: F.cross_entropy(model(x), y))
        for _ in range(3):
            rows = optimizer.ask()
            values = []
            for row in rows:
                other = copy.deepcopy(twin)
                nn.utils.vector_to_parameters(row, other.parameters())
                values.append(float(F.cross_entropy(other(x), y).detach()))
            optimizer.tell(values)
        torch.testing.assert_close(parameters_of(twin), stepped)

    def test_tell_wants_an_ask_and_as_many_objectives(self):
        optimizer = EvolutionStrategies(classifier()[0], candidates=4)
        with pytest.raises(ConfigurationError, match="ask first"):
            optimizer.tell([1.0, 2.0, 3.0, 4.0])
        optimizer.ask()
        with pytest.raises(ConfigurationError, match="4 numbers"):
            optimizer.tell([1.0])
        assert optimizer.tell([1.0, 2.0, 3.0, 4.0]).accepted
        with pytest.raises(ConfigurationError, match="ask first"):
            optimizer.tell([1.0, 2.0, 3.0, 4.0])


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"candidates": 1}, "candidates must be at least 2"),
            ({"candidates": 7}, "even"),
            ({"candidates": 1, "antithetic": False}, "candidates must be at least 2"),
            ({"shaping": "rank"}, "shaping"),
            ({"adapt": "full"}, "adapt"),
            ({"chunk_size": 0}, "chunk_size"),
            ({"sigma_lr": -1.0}, "sigma_lr"),
        ],
    )
    def test_those_that_cannot_work_are_refused_by_name(self, options, told):
        with pytest.raises(ConfigurationError, match=told):
            EvolutionStrategies(classifier()[0], **options)

    def test_a_pair_of_loss_and_prediction_is_told(self):
        model, x, y = classifier()
        optimizer = EvolutionStrategies(model)
        with pytest.raises(ConfigurationError, match="nothing else"):
            optimizer.step(lambda: (F.cross_entropy(model(x), y), model(x)))

    def test_deviations_are_saved_uncast(self):
        model = classifier()[0].to(torch.bfloat16)
        optimizer = EvolutionStrategies(model, adapt="separable", candidates=4)
        optimizer.ask()
        optimizer.tell([1.0, 2.0, 3.0, 4.0])
        resumed = EvolutionStrategies(model, adapt="separable", candidates=4)
        resumed.load_state_dict(optimizer.state_dict())
        assert all(
            torch.equal(a, b) and a.dtype == b.dtype
            for a, b in zip(optimizer.deviation.each, resumed.deviation.each, strict=True)
        )

    def test_deviations_of_other_shapes_are_refused(self):
        optimizer = EvolutionStrategies(classifier()[0], adapt="separable", candidates=4)
        optimizer.ask()
        state = optimizer.state_dict()
        state["deviation"]["each"][0] = torch.ones(2)
        with pytest.raises(ConfigurationError, match="do not fit"):
            optimizer.load_state_dict(state)
