"""The deviation of evolution strategies' noise against its published updates."""

import math

import numpy as np
import pytest
import torch

from npg.errors import ConfigurationError
from npg.optim import EvolutionStrategies
from tests.npg.optim.search_problems import Point, classifier, parameters_of


def utilities(objectives):
    """Wierstra et al. 2014, section 3.1, of objectives to be minimised."""
    number = len(objectives)
    ranks = np.argsort(np.argsort(objectives)) + 1
    raw = np.maximum(0, math.log(number / 2 + 1) - np.log(ranks))
    return raw / raw.sum() - 1 / number


def sphere(rows):
    return ((rows - 1) ** 2 * np.arange(1, rows.shape[-1] + 1)).sum(-1)


def test_separable_is_snes():
    # Algorithm 6 of Wierstra et al. 2014 with its defaults: η_μ = 1, η_σ = (3 + ln d)/(5 √d).
    size = 6
    point = Point(torch.zeros(size, dtype=torch.float64))
    optimizer = EvolutionStrategies(
        point, 1.0, candidates=12, sigma=0.5, adapt="separable", shaping="utilities"
    )
    mean, sigma = np.zeros(size), np.full(size, 0.5)
    rate = (3 + math.log(size)) / (5 * math.sqrt(size))
    for _ in range(25):
        rows = optimizer.ask().numpy()
        draws = (rows - mean) / sigma
        weights = utilities(sphere(rows))
        mean = mean + sigma * (weights @ draws)
        sigma = sigma * np.exp(rate / 2 * (weights @ (draws**2 - 1)))
        optimizer.tell(torch.from_numpy(sphere(rows)))
        np.testing.assert_allclose(parameters_of(point).numpy(), mean, atol=1e-12)
        found = torch.cat([d.reshape(-1) for d in optimizer.deviation.each]).numpy()
        np.testing.assert_allclose(found, sigma, rtol=1e-10)
    assert np.all(sigma < 0.5)


@pytest.mark.parametrize("antithetic", [True, False])
def test_without_shaping_its_gradient_has_no_bias(antithetic):
    # l(θ) = θᵀ H θ / 2 at 0: E l = σ² tr H / 2, so that ∂/∂ log σ = σ² tr H, over 2 P parameters.
    curvatures = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    exact = 0.25 * float(curvatures.sum()) / (2 * 3)
    moves = []
    for seed in range(1500):
        point = Point(torch.zeros(3, dtype=torch.float64))
        optimizer = EvolutionStrategies(
            point,
            1e-3,
            candidates=4,
            sigma=0.5,
            adapt="global",
            shaping="none",
            antithetic=antithetic,
            sigma_lr=0.1,
            seed=seed,
        )
        rows = optimizer.ask()
        optimizer.tell((curvatures * rows.square()).sum(1) / 2)
        moves.append(-math.log(optimizer.deviation.sigma / 0.5) / 0.1)
    error = np.std(moves) / math.sqrt(len(moves))
    assert abs(np.mean(moves) - exact) < 5 * error
    assert abs(np.mean(moves) - exact / 2) > 5 * error  # what the mean of all would give


@pytest.mark.parametrize("adapt", ["global", "separable"])
def test_a_step_changes_it_by_a_factor_of_e_at_most(adapt):
    point = Point(torch.zeros(3, dtype=torch.float64))
    optimizer = EvolutionStrategies(
        point, 1e-6, candidates=4, sigma=0.5, adapt=adapt, shaping="none", sigma_lr=1e6
    )
    optimizer.ask()
    report = optimizer.tell([1.0, 2.0, 30.0, 4.0])
    assert report.accepted
    each = optimizer.deviation.each or [torch.tensor(optimizer.deviation.sigma)]
    factors = torch.cat([d.reshape(-1) for d in each]) / 0.5
    assert bool(((factors - math.e).abs().minimum((factors - 1 / math.e).abs()) < 1e-6).all())


@pytest.mark.parametrize("adapt", ["global", "separable"])
def test_stays_finite_whatever_it_is_told(adapt):
    point = Point(torch.zeros(1000))
    optimizer = EvolutionStrategies(point, candidates=4, adapt=adapt, shaping="none")
    for value in (1e37, 1e300, 1e308):
        optimizer.ask()
        optimizer.tell(torch.tensor([value, value, -value, -value], dtype=torch.float64))
    assert bool(torch.isfinite(optimizer.ask()).all())


def test_frozen_parameters_keep_theirs():
    model, *_ = classifier()
    optimizer = EvolutionStrategies(model, candidates=4, adapt="separable")
    optimizer.ask()
    optimizer.tell([1.0, 2.0, 3.0, 4.0])
    model[0].weight.requires_grad_(False)
    kept = [d.clone() for d in optimizer.deviation.each]
    optimizer.ask()
    optimizer.tell([1.0, 2.0, 3.0, 4.0])
    same = [torch.equal(a, b) for a, b in zip(kept, optimizer.deviation.each, strict=True)]
    assert same == [True, False, False, False]


def test_of_halves_is_kept_in_single_precision():
    model = classifier()[0].to(torch.bfloat16)
    optimizer = EvolutionStrategies(model, adapt="separable", candidates=4, sigma_lr=1e-3)
    optimizer.ask()
    optimizer.tell([1.0, 2.0, 3.0, 4.0])
    each = torch.cat([d.reshape(-1) for d in optimizer.deviation.each])
    assert each.dtype == torch.float32
    assert len(each.unique()) > len(each) // 2  # small changes are there
    resumed = EvolutionStrategies(model, adapt="separable", candidates=4)
    resumed.load_state_dict(optimizer.state_dict())
    again = torch.cat([d.reshape(-1) for d in resumed.deviation.each])
    assert torch.equal(each, again)
    assert again.dtype == torch.float32


def test_one_kind_does_not_become_the_other():
    optimizer = EvolutionStrategies(classifier()[0], candidates=4)
    optimizer.adapt = "separable"
    with pytest.raises(ConfigurationError, match="adapt cannot become"):
        optimizer.ask()
