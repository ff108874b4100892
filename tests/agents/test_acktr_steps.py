"""ACKTR's steps against K-FAC worked out densely, from per-sample scores by torch.func."""

import copy
import math

import pytest
import torch
from torch.func import grad, vmap

import agents.kfac_actor_critic
from agents import ACKTR
from agents.rollout import batch
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    DISCRETE,
    VECTOR,
    Toy,
    parameters,
    small,
    stored_observations,
    vector_env,
)
from tests.agents.rollouts import collect, prepared

FREE = {"target_kl": None, "kl_clip": 1e9, "learning_rate": 0.5}  # nothing bounds the step


def homogeneous(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)


def chain(layers, observations: torch.Tensor):
    """Inputs of every layer, in float64, and a function of what is added to their outputs."""
    weights = [(m.weight.detach().double(), m.bias.detach().double()) for m in layers]
    rows, x = [], observations.double()
    for i, (weight, bias) in enumerate(weights):
        rows.append(homogeneous(x))
        x = x @ weight.T + bias
        x = torch.tanh(x) if i < len(weights) - 1 else x

    def output(added, observation):
        x = observation
        for i, (weight, bias) in enumerate(weights):
            x = weight @ x + bias + added[i]
            x = torch.tanh(x) if i < len(weights) - 1 else x
        return x

    return rows, x, output


def dense_steps(layers, observations, log_prob, labels, damping: float) -> list[torch.Tensor]:
    """−(G + √λ/π)⁻¹ ⊗ (A + π√λ)⁻¹ g per layer [o, d + 1], from per-sample scores by torch.func."""
    rows, _, output = chain(layers, observations)

    def sample(observation, label):
        zeros = [torch.zeros(len(m.bias), dtype=torch.float64) for m in layers]
        return grad(lambda added: log_prob(output(added, observation), label))(zeros)

    signals = vmap(sample)(observations.double(), labels)
    steps = []
    for layer, a, delta in zip(layers, rows, signals, strict=True):
        inputs, outputs = a.T @ a / len(a), delta.T @ delta / len(a)
        share = math.sqrt(inputs.diagonal().mean() / outputs.diagonal().mean())
        inputs += share * math.sqrt(damping) * torch.eye(len(inputs))
        outputs += math.sqrt(damping) / share * torch.eye(len(outputs))
        gradient = torch.cat([layer.weight.grad, layer.bias.grad.unsqueeze(1)], 1).double()
        matrix = torch.kron(outputs, inputs)
        steps.append(-torch.linalg.solve(matrix, gradient.flatten()).view_as(gradient))
    return steps


def loss_gradients(model: ACKTR) -> None:
    """Leaves the gradient of policy loss and half the value loss, from torch's autograd alone."""
    samples = batch(model.rollout_buffer, model.action_space, model.device)
    advantages = samples.advantages
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    values, log_probs, entropy = model.policy.evaluate_actions(
        samples.observations, samples.actions
    )
    loss = -(advantages * log_probs).mean() - model.ent_coef * entropy.mean()
    model.policy.zero_grad()
    (loss + 0.5 * (values.flatten() - samples.returns).square().mean()).backward()


def moved(model: ACKTR, layers) -> list[torch.Tensor]:
    """Trains, and tells how far weights and biases went, [o, d + 1] per layer."""

    def now() -> list[torch.Tensor]:
        return [torch.cat([m.weight, m.bias.unsqueeze(1)], 1).detach().double() for m in layers]

    before = now()
    model.train()
    return [after - start for after, start in zip(now(), before, strict=True)]


def gaussian_log_prob(log_std: torch.Tensor):
    def log_prob(mean, label):
        return (-0.5 * ((label - mean) / log_std.exp()) ** 2 - log_std).sum()

    return log_prob


def test_the_actors_step_is_the_dense_one() -> None:
    model = prepared(ACKTR, actions=BOX, damping=0.03, ent_coef=0.1, **FREE)
    layers = [model.policy.mlp_extractor.policy_net[0], model.policy.action_net]
    log_std = model.policy.log_std.detach().double()
    observations = stored_observations(model)
    _, means, _ = chain(layers, observations)
    noise = torch.randn(means.shape, generator=torch.Generator().manual_seed(0))
    labels = means + log_std.exp() * noise  # the optimizer draws from its own seed
    loss_gradients(model)
    score = model.policy.log_std.grad.double().clone()
    wanted = dense_steps(layers, observations, gaussian_log_prob(log_std), labels, 0.03)
    for step, oracle in zip(moved(model, layers), wanted, strict=True):
        torch.testing.assert_close(step, 0.5 * oracle, rtol=2e-3, atol=1e-5)
    # A Gaussian's Fisher matrix in log σ is 2 I, whatever was drawn.
    change = model.policy.log_std.detach().double() - log_std
    torch.testing.assert_close(change, -0.5 * score / (2 + 0.03), rtol=1e-4, atol=1e-7)


def test_the_actors_step_is_the_dense_one_for_choices() -> None:
    model = prepared(ACKTR, actions=DISCRETE, damping=0.03, **FREE)
    layers = [model.policy.mlp_extractor.policy_net[0], model.policy.action_net]
    observations = stored_observations(model)
    _, logits, _ = chain(layers, observations)
    draws = torch.Generator().manual_seed(0)
    labels = torch.multinomial(logits.softmax(1).float(), 1, generator=draws)[:, 0]
    loss_gradients(model)

    def log_prob(logits, label):
        return (logits.log_softmax(0) * label).sum()

    labels = torch.eye(3, dtype=torch.float64)[labels]
    wanted = dense_steps(layers, observations, log_prob, labels, 0.03)
    for step, oracle in zip(moved(model, layers), wanted, strict=True):
        torch.testing.assert_close(step, 0.5 * oracle, rtol=2e-3, atol=1e-5)


def test_the_critics_fisher_is_that_of_unit_variance() -> None:
    """For δ = ε ∂V/∂z with unit noise ε, the blocks are mean a aᵀ and mean δ δᵀ."""
    model = prepared(ACKTR, damping=0.03, **FREE)
    first, last = model.policy.mlp_extractor.value_net[0], model.policy.value_net
    observations = stored_observations(model)
    rows, _, _ = chain([first, last], observations)
    noise = torch.randn(len(observations), generator=torch.Generator().manual_seed(1)).double()
    delta = noise.unsqueeze(1) * last.weight.detach().double() * (1 - rows[1][:, :-1] ** 2)
    by_hand = [
        (rows[0].T @ rows[0] / 64, delta.T @ delta / 64),
        (rows[1].T @ rows[1] / 64, (noise**2).mean().reshape(1, 1)),
    ]
    loss_gradients(model)
    layers = [first, last]
    wanted = dense_steps(layers, observations, lambda v, e: (e * v).sum(), noise, 0.03)
    steps = moved(model, layers)
    blocks = {b.parameters[0]: b.moments for b in model.critic_optimizer.fisher.blocks}
    for layer, factors in zip(layers, by_hand, strict=True):
        for moment, oracle in zip(blocks[layer.weight], factors, strict=True):
            torch.testing.assert_close(moment.double(), oracle, rtol=1e-4, atol=1e-6)
    for step, oracle in zip(steps, wanted, strict=True):
        torch.testing.assert_close(step, 0.5 * oracle, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("interval", [1, 100])
@pytest.mark.parametrize("actions", ACTIONS)
def test_the_written_passes_make_the_update_of_autograd(actions, interval, monkeypatch) -> None:
    """Statistics included, where they are due: labels are drawn in the same order."""
    env = vector_env(lambda: Toy(VECTOR, ACTIONS[actions]), 2)
    settings = {"n_steps": 16, "statistics_interval": interval, "critic_steps": 3, "ent_coef": 0.01}
    model = small(ACKTR, env, **settings)
    model.learn(32)
    collect(model)
    start, ends = copy.deepcopy(model.get_parameters()), []
    for by_hand in (True, False):
        model.set_parameters(start)
        if not by_hand:
            monkeypatch.setattr(agents.kfac_actor_critic, "plain_actor_critic", lambda *_: None)
        model.train()
        assert (model._by_hand is not None) == by_hand
        optimizers = (model.actor_optimizer, model.critic_optimizer)
        blocks = [block for optimizer in optimizers for block in optimizer.fisher.blocks]
        moments = [moment.clone() for block in blocks for moment in block.moments]
        assert len(moments) >= 8
        updates = [block.updates for block in blocks]
        tensors = [*parameters(model), *moments]
        ends.append((tensors, dict(model.logger.name_to_value), updates))
    assert ends[0][2] == ends[1][2]
    for a, b in zip(ends[0][0], ends[1][0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for key in ("policy_loss", "value_loss", "entropy_loss", "kl_divergence", "step_size"):
        written, torchs = (logged[f"train/{key}"] for _, logged, _ in ends)
        assert written == pytest.approx(torchs, rel=1e-3, abs=1e-6)
