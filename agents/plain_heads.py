"""From an actor's output to log π(a|s) and to the gradient of the actor's loss, past autograd.

The loss is L = ℓ(log π(a_1), …, log π(a_N)) − c mean H, with the slope s_n = ∂ℓ/∂log π(a_n). A
categorical's logits get

    ∂L/∂z = s (1_a − p) + (c / N) p ⊙ (log p + H),

a Gaussian's mean and log standard deviation

    ∂L/∂μ = s (a − μ) / σ²,    ∂L/∂log σ = Σ_n s_n ((a_n − μ_n)² / σ² − 1) − c.
"""

import math
from typing import Any, NamedTuple

import torch
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from agents.losses import Loss
from agents.plain_networks import action_distribution
from agents.predictions import prediction
from npg.likelihoods import joint_kl


class Differentiated(NamedTuple):
    """The actor's losses and their gradients.

    Attributes:
        policy_loss: ℓ.
        entropy_loss: −mean H.
        output: ∂L/∂output, [N, K].
        log_std: ∂L/∂log σ where the policy has one, [K].
    """

    policy_loss: Tensor
    entropy_loss: Tensor
    output: Tensor
    log_std: Tensor | None


class Head:
    """Any action distribution, by autograd from the actor's output on.

    Args:
        policy: A policy whose actor is plain.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy

    def reference(self, output: Tensor) -> Any:
        """What :meth:`kl` needs to know of the policy at this moment; no view of ``output``."""
        with torch.no_grad():
            return prediction(action_distribution(self.policy, output.clone()))

    def kl(self, reference: Any, output: Tensor) -> Tensor:
        """Mean KL(policy of the reference ‖ policy now) of whole actions, float64, without a graph.

        Small divergences are small differences of large numbers: see
        :func:`npg.likelihoods.joint_kl`.

        Args:
            reference: What :meth:`reference` returned.
            output: The actor's output now, [N, K].

        Returns:
            The mean, nats.
        """
        with torch.no_grad():
            return joint_kl(reference, prediction(action_distribution(self.policy, output))).mean()

    def log_probs(self, output: Tensor, actions: Tensor) -> Tensor:
        """Computes log π(a|s), [N], without a graph."""
        with torch.no_grad():
            return action_distribution(self.policy, output).log_prob(actions)

    def differentiate(
        self, output: Tensor, actions: Tensor, loss: Loss, ent_coef: float
    ) -> Differentiated:
        """Computes the losses and what they do to the output, see the module's formulas.

        Args:
            output: The actor's, [N, K].
            actions: [N, A], or [N] for a Discrete space.
            loss: ℓ.
            ent_coef: c.

        Returns:
            The losses and their gradients, in memory of their own.
        """
        with torch.enable_grad():
            output = output.detach().requires_grad_()
            distribution = action_distribution(self.policy, output)
            policy_loss, _ = loss(distribution.log_prob(actions))
            entropy_loss = -distribution.entropy().mean()
            (delta,) = torch.autograd.grad(policy_loss + ent_coef * entropy_loss, output)
        return Differentiated(policy_loss.detach(), entropy_loss.detach(), delta, None)


class CategoricalHead(Head):
    """One choice among K."""

    def reference(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities and their logarithms, in float64."""
        log_p = output.double().log_softmax(1)
        return log_p.exp(), log_p

    def kl(self, reference: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
        """mean p · (log p − log q)."""
        p, log_p = reference
        ratio = log_p - output.double().log_softmax(1)
        return torch.dot(p.view(-1), ratio.view(-1)) / len(output)

    def log_probs(self, output: Tensor, actions: Tensor) -> Tensor:
        """See :class:`Head`; what is not finite is left to the distribution's own checks."""
        log_probs = output.log_softmax(1).gather(1, actions.unsqueeze(1)).squeeze(1)
        return log_probs if math.isfinite(log_probs.sum()) else super().log_probs(output, actions)

    def differentiate(
        self, output: Tensor, actions: Tensor, loss: Loss, ent_coef: float
    ) -> Differentiated:
        """See :class:`Head`."""
        chosen = actions.unsqueeze(1)
        log_p = output.log_softmax(1)
        p = log_p.exp()
        negative_entropy = torch.linalg.vecdot(p, log_p)
        policy_loss, slope = loss(log_p.gather(1, chosen).view(-1))
        slope = slope.unsqueeze(1)
        delta = (p * -slope).scatter_add_(1, chosen, slope)
        if ent_coef:
            log_p -= negative_entropy.unsqueeze(1)
            delta += log_p.mul_(p).mul_(ent_coef / len(output))
        return Differentiated(policy_loss, negative_entropy.mean(), delta, None)


class GaussianHead(Head):
    """Independent Gaussians whose deviations are parameters."""

    def reference(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Means, and log standard deviations in float64."""
        return output.clone(), self.policy.log_std.detach().to(torch.float64, copy=True)

    def kl(self, reference: tuple[Tensor, Tensor], output: Tensor) -> Tensor:
        """½ Σ (σ_p² + mean (μ_p − μ_q)²) / σ_q² − 1 − log σ_p² / σ_q²."""
        means, log_std = reference
        ratio = log_std - self.policy.log_std.detach()
        precision = torch.exp(2 * (ratio - log_std))
        shifts = (means - output).square_().mean(0, dtype=torch.float64)
        return 0.5 * (torch.expm1(2 * ratio) + shifts * precision).sum() - ratio.sum()

    def log_probs(self, output: Tensor, actions: Tensor) -> Tensor:
        """See :class:`Head`; what is not finite is left to the distribution's own checks."""
        log_std = self.policy.log_std.detach()
        squares = ((actions - output) * torch.exp(-log_std)).square_().sum(1)
        log_probs = squares.mul_(-0.5).sub_(_normaliser(log_std))
        return log_probs if math.isfinite(log_probs.sum()) else super().log_probs(output, actions)

    def differentiate(
        self, output: Tensor, actions: Tensor, loss: Loss, ent_coef: float
    ) -> Differentiated:
        """See :class:`Head`."""
        log_std = self.policy.log_std.detach()
        deviations = actions - output
        delta = deviations * torch.exp(-2 * log_std)
        squares = deviations.mul_(delta)  # ((a − μ) / σ)²
        normaliser = _normaliser(log_std)
        policy_loss, slope = loss(squares.sum(1).mul_(-0.5).sub_(normaliser))
        delta.mul_(slope.unsqueeze(1))
        return Differentiated(
            policy_loss,
            -normaliser - 0.5 * len(log_std),
            delta,
            slope @ squares - slope.sum() - ent_coef,
        )


def _normaliser(log_std: Tensor) -> Tensor:
    """log of the integral that a Gaussian's exponential is divided by."""
    return log_std.sum() + 0.5 * math.log(2 * math.pi) * len(log_std)


HEADS: dict[type[Distribution], type[Head]] = {
    BernoulliDistribution: Head,
    CategoricalDistribution: CategoricalHead,
    DiagGaussianDistribution: GaussianHead,
    MultiCategoricalDistribution: Head,
}


def head_of(policy: ActorCriticPolicy) -> Head:
    """Returns the head for a policy with a plain actor and one of the distributions of HEADS."""
    return HEADS[type(policy.action_dist)](policy)
