"""Settings of evolution strategies that were changed since the search was made."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agents.es import ES


def take_settings(model: "ES") -> None:
    """Gives the search what the agent's attributes say now.

    σ is one of two where it adapts: what was asked for, and what became of it. The search keeps
    the latter until another is asked for.

    Args:
        model: The agent.

    Raises:
        ConfigurationError: If a setting cannot work, or cannot be changed any more.
    """
    model._check_settings()
    optimizer = model.policy.optimizer
    optimizer.candidates, optimizer.antithetic = model.n_candidates, model.antithetic
    optimizer.shaping, optimizer.adapt = model.shaping, model.adapt
    if model.adapt == "none" or model.sigma != model._sigma_taken:
        optimizer.deviation.sigma, optimizer.deviation.each = model.sigma, []
        model._sigma_taken = model.sigma
