"""Closed forms of the actor's loss: those of torch.distributions and autograd, in float64."""

import math

import pytest
import torch
from torch import distributions

from agents import A2C
from agents.losses import PolicyGradient
from agents.plain_heads import head_of
from tests.agents.helpers import ACTIONS, Toy, small, vector_env

ROWS = 30


def head_and_actions(actions: str):
    model = small(A2C, vector_env(lambda: Toy(action_space=ACTIONS[actions]))).learn(64)
    policy = model.policy.double()
    if hasattr(policy, "log_std"):
        with torch.no_grad():
            policy.log_std.copy_(torch.randn_like(policy.log_std))
    output = torch.randn(ROWS, policy.action_net.out_features, dtype=torch.float64)
    given = torch.stack(
        [torch.as_tensor(model.action_space.sample()).flatten() for _ in range(ROWS)]
    )
    given = given.flatten() if actions == "discrete" else given.double()
    advantages = torch.randn(ROWS, dtype=torch.float64)
    return head_of(policy), output, given, advantages


def exact(actions: str, policy, output):
    """The distribution of whole actions by torch alone."""
    if actions == "discrete":
        return [distributions.Categorical(logits=output)]
    if actions == "multi-discrete":
        return [distributions.Categorical(logits=z) for z in output.split([3, 2, 4], dim=1)]
    if actions == "multi-binary":
        return [distributions.Independent(distributions.Bernoulli(logits=output), 1)]
    return [distributions.Independent(distributions.Normal(output, policy.log_std.exp()), 1)]


@pytest.mark.parametrize("ent_coef", [0.0, 0.3])
@pytest.mark.parametrize("actions", ACTIONS)
def test_losses_and_gradients_are_those_of_torch(actions: str, ent_coef: float) -> None:
    head, output, given, advantages = head_and_actions(actions)
    leaf = output.clone().requires_grad_()
    parts = exact(actions, head.policy, leaf)
    columns = given.unbind(1) if len(parts) > 1 else [given]
    log_probs = sum(p.log_prob(a) for p, a in zip(parts, columns, strict=True))
    policy_loss = -(advantages * log_probs).mean()
    entropy_loss = -sum(p.entropy() for p in parts).mean()
    wanted = [leaf, head.policy.log_std] if actions in ("box", "matrix") else [leaf]
    gradients = torch.autograd.grad(policy_loss + ent_coef * entropy_loss, wanted)

    torch.testing.assert_close(head.log_probs(output, given), log_probs.detach())
    with torch.no_grad():
        result = head.differentiate(output, given, PolicyGradient(advantages), ent_coef)
    torch.testing.assert_close(result.policy_loss, policy_loss.detach())
    torch.testing.assert_close(result.entropy_loss, entropy_loss.detach())
    torch.testing.assert_close(result.output, gradients[0])
    if len(wanted) > 1:
        torch.testing.assert_close(result.log_std, gradients[1])
    else:
        assert result.log_std is None


@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_outputs_that_are_no_numbers_are_refused_as_by_torch(actions: str) -> None:
    head, output, given, _ = head_and_actions(actions)
    output[3, 0] = math.nan
    with pytest.raises(ValueError, match="to satisfy the constraint"):
        head.log_probs(output, given)


@pytest.mark.parametrize("actions", ACTIONS)
def test_the_divergence_is_that_of_torch(actions: str) -> None:
    head, output, *_ = head_and_actions(actions)
    policy = head.policy
    with torch.no_grad():
        old, reference = exact(actions, policy, output.clone()), head.reference(output)
        assert float(head.kl(reference, output)) == pytest.approx(0, abs=1e-12)
        output.add_(0.3 * torch.randn_like(output))  # the reference is no view of it
        if hasattr(policy, "log_std"):
            policy.log_std.add_(0.2 * torch.randn_like(policy.log_std))
        pairs = zip(old, exact(actions, policy, output), strict=True)
        wanted = sum(distributions.kl_divergence(p, q) for p, q in pairs).mean()
    assert float(wanted) > 1e-3
    torch.testing.assert_close(head.kl(reference, output), wanted)
