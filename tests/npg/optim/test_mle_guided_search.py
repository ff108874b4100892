"""Guided search against its definition, step for step."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import MLEGuidedSearch
from tests.npg.optim.search_problems import (
    Point,
    classifier,
    guided_closure,
    parameters_of,
    wrong,
)


class Recorder:
    """A closure that remembers where it was evaluated."""

    def __init__(self, model, closure):
        self.model, self.closure = model, closure
        self.places, self.objectives = [], []

    def __call__(self):
        result = self.closure()
        self.places.append(parameters_of(self.model))
        self.objectives.append(float(result[1]))
        return result


def recorded(optimizer, model, x, y):
    recorder = Recorder(model, guided_closure(model, x, y))
    report = optimizer.step(recorder)
    places = torch.stack(recorder.places)
    return report, places[1:] - places[0], torch.tensor(recorder.objectives[1:]).double()


def gradient_of(model, x, y):
    loss = F.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([g.reshape(-1) for g in gradients])


class TestDirection:
    @pytest.mark.parametrize("temperature", [1e-3, 0.1, math.inf])
    @pytest.mark.parametrize("candidates", [2, 4, 7])
    @pytest.mark.parametrize("antithetic", [True, False])
    def test_is_the_weighted_mean_of_the_candidates(self, temperature, candidates, antithetic):
        model, x, y = classifier()
        start = parameters_of(model)
        optimizer = MLEGuidedSearch(
            model, candidates=candidates, temperature=temperature, antithetic=antithetic
        )
        report, steps, objectives = recorded(optimizer, model, x, y)
        weights = torch.softmax(-objectives / temperature, 0)
        torch.testing.assert_close(parameters_of(model), start + weights @ steps)
        assert report.candidates == len(steps) == candidates
        assert report.evaluations == candidates + 1
        assert report.effective_sample_size == pytest.approx(1 / float(weights.square().sum()))
        assert report.best == float(objectives.min())
        assert report.objective == float(wrong(copy.deepcopy(model)(x), y)) or report.accepted

    @pytest.mark.parametrize("scale", ["tensor", "global", "absolute"])
    def test_the_paper_s_weights_with_the_true_deviation(self, scale):
        model, x, y = classifier()
        start, mean = parameters_of(model), -gradient_of(model, x, y)
        optimizer = MLEGuidedSearch(
            model,
            candidates=6,
            sigma=0.7,
            scale=scale,
            exploration=0.3,
            reference="uniform",
            max_grad_norm=math.inf,
            temperature=0.2,
        )
        _, steps, objectives = recorded(optimizer, model, x, y)
        sizes = [p.numel() for p in model.parameters()]
        each = torch.cat([piece.abs().mean().expand(len(piece)) for piece in mean.split(sizes)])
        sigma = 0.7 * {"tensor": each, "global": mean.abs().mean(), "absolute": 1.0}[scale]
        sigma = sigma * torch.ones_like(mean)
        normal = torch.distributions.Normal
        log_q = torch.logaddexp(
            math.log(0.3) + normal(0 * mean, sigma).log_prob(steps).sum(1),
            math.log(0.7) + normal(mean, sigma).log_prob(steps).sum(1),
        )
        weights = torch.softmax(-objectives / 0.2 - log_q, 0)
        torch.testing.assert_close(parameters_of(model), start + weights @ steps)

    def test_pairs_are_reflected_at_the_proposal_s_centre(self):
        model, x, y = classifier()
        mean = -gradient_of(model, x, y)
        _, steps, _ = recorded(MLEGuidedSearch(model, max_grad_norm=math.inf), model, x, y)
        centres = [steps[:2].mean(0), steps[2:].mean(0)]
        centres.sort(key=torch.linalg.vector_norm)
        torch.testing.assert_close(centres[0], 0 * mean)
        torch.testing.assert_close(centres[1], mean)

    def test_the_gradient_is_clipped(self):
        model, x, y = classifier()
        mean = -gradient_of(model, x, y)
        optimizer = MLEGuidedSearch(model, exploration=0.0, max_grad_norm=0.01)
        _, steps, _ = recorded(optimizer, model, x, y)
        torch.testing.assert_close(steps.mean(0), 0.01 * mean / torch.linalg.vector_norm(mean))

    @pytest.mark.parametrize(("exploration", "share"), [(0.0, 1.0), (0.5, 0.5), (0.8, 0.2)])
    def test_so_many_candidates_are_guided(self, exploration, share):
        optimizer = MLEGuidedSearch(classifier()[0], exploration=exploration, candidates=10)
        counts = [sum(optimizer._guided()) for _ in range(400)]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) / 400 == pytest.approx(5 * share, abs=5 * 0.5 / 20)

    def test_one_seed_one_way(self):
        ends = []
        for seed in (0, 0, 1):
            torch.manual_seed(2)
            model, x, y = classifier()
            optimizer = MLEGuidedSearch(model, seed=seed)
            for _ in range(3):
                optimizer.step(guided_closure(model, x, y))
            ends.append(parameters_of(model))
        assert torch.equal(ends[0], ends[1])
        assert not torch.equal(ends[0], ends[2])


class TestObjectives:
    def test_the_loss_alone_is_the_objective(self):
        model, x, y = classifier()
        twin = copy.deepcopy(model)
        MLEGuidedSearch(model).step(lambda: F.cross_entropy(model(x), y))

        def both():
            loss = F.cross_entropy(twin(x), y)
            return loss, loss.detach()

        MLEGuidedSearch(twin).step(both)
        assert torch.equal(parameters_of(model), parameters_of(twin))

    def test_one_with_a_graph_is_refused(self):
        model, x, y = classifier()
        start = parameters_of(model)

        def closure():
            loss = F.cross_entropy(model(x), y)
            return loss, 2 * loss

        with pytest.raises(ConfigurationError, match="with a graph"):
            MLEGuidedSearch(model).step(closure)
        assert torch.equal(parameters_of(model), start)

    @pytest.mark.parametrize("kind", [float, torch.tensor, lambda v: torch.tensor(v).numpy()])
    def test_numbers_of_any_kind(self, kind):
        model, x, y = classifier()
        closure = guided_closure(model, x, y)

        def converted():
            loss, objective = closure()
            return loss, kind(float(objective))

        assert MLEGuidedSearch(model).step(converted).accepted

    def test_follows_the_objective_against_the_surrogate(self):
        # The surrogate pulls to 0, the objective is least at 1: selection has to win over −g/2.
        point = Point(torch.full((4,), 0.5, dtype=torch.float64))

        def closure():
            value = point()
            return 0.1 * value.square().sum(), (value.detach() - 1).square().sum()

        optimizer = MLEGuidedSearch(
            point, scale="absolute", sigma=0.1, candidates=16, temperature=0.02
        )
        for _ in range(60):
            optimizer.step(closure)
        assert float((parameters_of(point) - 1).norm()) < 0.3

    def test_macro_objective_of_a_classifier_falls(self):
        model, x, y = classifier()
        optimizer = MLEGuidedSearch(model, lr=2.0)
        reports = [optimizer.step(guided_closure(model, x, y)) for _ in range(60)]
        assert reports[-1].objective < 0.5 * reports[0].objective
        assert reports[-1].loss < reports[0].loss


class TestObstacles:
    def test_a_zero_gradient_has_no_noise_but_absolute(self):
        def closure():
            value = point()
            return 0 * value.sum(), value.detach().square().sum()

        point = Point(torch.ones(3, dtype=torch.float64))
        report = MLEGuidedSearch(point).step(closure)
        assert (report.accepted, report.reason) == (False, "zero gradient")
        report = MLEGuidedSearch(point, scale="absolute", sigma=0.1).step(closure)
        assert report.accepted

    @pytest.mark.parametrize("scale", ["tensor", "absolute"])
    def test_a_surrogate_that_is_not_finite_is_skipped(self, scale):
        model, x, y = classifier()
        start = parameters_of(model)
        optimizer = MLEGuidedSearch(model, scale=scale)
        closure = guided_closure(model, x * math.nan, y)
        for _ in range(4):
            assert not optimizer.step(closure).accepted
        assert torch.equal(parameters_of(model), start)
        assert optimizer.extra["skipped"] == 4

    def test_a_tensor_without_gradient_has_no_noise(self):
        point = Point(torch.ones(3, dtype=torch.float64))
        optimizer = MLEGuidedSearch(point, reference="uniform")
        report = optimizer.step(lambda: point.b.square().sum())
        assert report.accepted
        assert float(point.a.detach()) == 1
        assert bool((point.b != 1).all())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_the_direction_of_halves_is_added_up_in_single_precision(self, dtype):
        model, x, y = classifier()
        start = parameters_of(model.to(dtype))
        seen = []

        class Keeps(torch.optim.SGD):
            def step(self, closure=None):
                seen.append(torch.cat([p.grad.reshape(-1) for p in optimizer.tensors()]))

        optimizer = MLEGuidedSearch(
            model, base=Keeps, candidates=64, temperature=math.inf, max_grad_norm=math.inf
        )
        places = []

        def closure():
            places.append(parameters_of(model).float())
            logits = model(x.to(dtype))
            return F.cross_entropy(logits, y), wrong(logits, y)

        optimizer.step(closure)
        mean = gradient_of(model, x.to(dtype), y).float() / 2  # half of the candidates are guided
        torch.testing.assert_close(seen[0].float(), mean, rtol=torch.finfo(dtype).eps, atol=1e-7)
        assert torch.equal(parameters_of(model), start)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("temperature", 0.0),
            ("temperature", None),
            ("exploration", 1.1),
            ("temperature", math.nan),
            ("max_grad_norm", -1.0),
            ("exploration", 1.5),
            ("exploration", -0.1),
            ("scale", "layer"),
            ("reference", "normal"),
        ],
    )
    def test_settings_that_cannot_work_are_refused_by_name(self, option, value):
        with pytest.raises(ConfigurationError, match=option):
            MLEGuidedSearch(classifier()[0], **{option: value})
