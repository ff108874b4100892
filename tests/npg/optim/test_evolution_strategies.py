"""Evolution strategies: one estimate, however candidates are evaluated."""

import math

import pytest
import torch
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import EvolutionStrategies
from npg.sampling import shaped
from tests.npg.optim.search_problems import Point, classifier, parameters_of, wrong


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


class TestSettings:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"chunk_size": 2.5}, "chunk_size"),
            ({"candidates": 7}, "even"),
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

    def test_deviations_of_other_shapes_are_refused(self):
        optimizer = EvolutionStrategies(classifier()[0], adapt="separable", candidates=4)
        optimizer.ask()
        state = optimizer.state_dict()
        state["deviation"]["each"][0] = torch.ones(2)
        with pytest.raises(ConfigurationError, match="do not fit"):
            optimizer.load_state_dict(state)
