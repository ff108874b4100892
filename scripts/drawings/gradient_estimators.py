"""Noise in actions, noise in parameters: estimators of one gradient, and their variances."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common.seeds import OPTIMIZER, derived
from torch import Tensor, nn
from torch.distributions import Normal

from npg.objectives import score_function
from npg.optim import EvolutionStrategies

GOAL, SIGMA = 1.0, 1.0
EPISODES, REPETITIONS = 64, 200  # of an estimate, estimates


@dataclass(frozen=True)
class Problem:
    """Episodes whose cost is of where they end: x ← x + a/√T, cost ½ (x − goal)².

    Attributes:
        states: That a linear policy sees, [T, P]. ‖Σ s‖² = Σ ‖s‖² = T, as for independent states
            of length 1, so that one deviation of actions and of parameters moves the end alike.
    """

    states: Tensor

    @classmethod
    def of(cls, parameters: int, horizon: int) -> "Problem":
        """Draws the states of at least two steps."""
        generator = torch.Generator().manual_seed(derived(parameters, OPTIMIZER, horizon))
        drawn = torch.randn(horizon, parameters, dtype=torch.float64, generator=generator)
        direction = torch.randn(parameters, dtype=torch.float64, generator=generator)
        apart = drawn - drawn.mean(0)
        apart *= math.sqrt(horizon - 1) / apart.norm()
        return cls(apart + direction / direction.norm() / math.sqrt(horizon))

    def cost(self, actions: Tensor) -> Tensor:
        """Of episodes [..., T]."""
        end = actions.sum(-1) / math.sqrt(actions.shape[-1])
        return (end - GOAL) ** 2 / 2

    def cost_of(self, parameters: Tensor) -> Tensor:
        """Of the policies [..., P], without noise in their actions."""
        return self.cost(parameters @ self.states.T)

    @property
    def gradient(self) -> Tensor:
        """Of the cost, at θ = 0 [P]."""
        return -GOAL * self.states.sum(0) / math.sqrt(len(self.states))


Estimator = Callable[[Problem, float, int], Tensor]


def policy_gradient(problem: Problem, sigma: float, seed: int) -> Tensor:
    """Estimates by noise in the actions, ∇ log π(a | s): [P]."""
    theta = torch.zeros(problem.states.shape[1], dtype=torch.float64, requires_grad=True)
    return _by_scores(Normal(problem.states @ theta, sigma), problem.cost, theta, seed)


def parameter_score(problem: Problem, sigma: float, seed: int) -> Tensor:
    """Estimates by the policy gradient of N(θ, σ²I) over parameters: [P]."""
    theta = torch.zeros(problem.states.shape[1], dtype=torch.float64, requires_grad=True)
    return _by_scores(Normal(theta, sigma), problem.cost_of, theta, seed)


def strategies(problem: Problem, sigma: float, seed: int, antithetic: bool = False) -> Tensor:
    """Estimates by :class:`npg.optim.EvolutionStrategies`: [P]."""
    theta, search = _search(problem, sigma, seed, antithetic)
    search.tell(problem.cost_of(search.ask()))
    return -theta.detach()


def strategies_in_pairs(problem: Problem, sigma: float, seed: int) -> Tensor:
    """The same with antithetic candidates."""
    return strategies(problem, sigma, seed, antithetic=True)


def difference_on_the_same_draws(problem: Problem, sigma: float = SIGMA, seed: int = 0) -> float:
    """Between evolution strategies and mean (l − b) ∇log N(·; θ, σ²I), relative to the latter."""
    theta, search = _search(problem, sigma, seed, False)
    candidates = search.ask()
    costs = problem.cost_of(candidates)
    others = (costs.sum() - costs) / (len(costs) - 1)
    mean = torch.zeros_like(theta, requires_grad=True)
    log_probability = Normal(mean, sigma).log_prob(candidates).sum(-1)
    (score,) = torch.autograd.grad(((costs - others) * log_probability).mean(), mean)
    search.tell(costs)
    return float((-theta.detach() - score).norm() / score.norm())


def closed_form(dimension: int, sigma: float, pairs: bool = False) -> float:
    """n E‖ĝ − g‖²/‖g‖².

    Args:
        dimension: Of the noise: T for noise in actions, P for noise in parameters.
        sigma: Its deviation.
        pairs: Whether it comes in pairs; else the baseline is the mean of the other n − 1.

    Returns:
        How many episodes have an error as large as the gradient.
    """
    if pairs:
        return 2 * (dimension + 1)
    curved = (sigma / GOAL) ** 2
    share = 1 / (EPISODES - 1)
    return dimension * (1 + curved / 2) * (1 + share) + 1 + 2 * curved + share


def measured(estimator: Estimator, problem: Problem, sigma: float) -> tuple[float, float]:
    """n E‖ĝ − g‖²/‖g‖², and its standard error."""
    exact = problem.gradient
    errors = estimates(estimator, problem, sigma) - exact
    squares = EPISODES * errors.square().sum(1) / exact.square().sum()
    return float(squares.mean()), float(squares.std() / len(squares) ** 0.5)


def estimates(estimator: Estimator, problem: Problem, sigma: float = SIGMA) -> Tensor:
    """One estimate a seed, [REPETITIONS, P]."""
    seeds = [derived(repetition, OPTIMIZER, 1) for repetition in range(REPETITIONS)]
    return torch.stack([estimator(problem, sigma, seed) for seed in seeds])


def _by_scores(noisy: Normal, cost: Callable[[Tensor], Tensor], theta: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    loss = score_function(noisy, lambda drawn: -cost(drawn), samples=EPISODES, generator=generator)
    return torch.autograd.grad(loss, theta)[0]


def _search(
    problem: Problem, sigma: float, seed: int, antithetic: bool
) -> tuple[Tensor, EvolutionStrategies]:
    theta = nn.Parameter(torch.zeros(problem.states.shape[1], dtype=torch.float64))
    search = EvolutionStrategies(
        [theta],
        lr=1.0,
        candidates=EPISODES,
        sigma=sigma,
        shaping="none",
        antithetic=antithetic,
        seed=seed,
    )
    return theta, search
