"""Minibatch gradients of a fully connected value network, written by hand.

At the usual 128 rows of a 64-64 network autograd's bookkeeping costs twice what the arithmetic
does, and a rollout has hundreds of minibatches. For L = mean (v − R)² the whole of it is

    δ = 2 (v − R) / B,    ∂W_l = δᵀ a_l,    ∂b_l = Σ δ,    δ ← φ'(a) ⊙ (δ W_l).
"""

from collections.abc import Callable, Iterator

import torch
from stable_baselines3.common.policies import ActorCriticPolicy, BaseModel
from torch import Tensor, nn

from agents.plain_networks import Layers, critic_layers
from agents.rollout import Batch

# In place: a ← φ(a), and δ ← φ'(a) ⊙ δ from a = φ(z).
_FORWARD: dict[type, Callable[[Tensor], Tensor]] = {nn.Tanh: torch.tanh_, nn.ReLU: torch.relu_}
_BACKWARD: dict[type, Callable[[Tensor, Tensor], object]] = {
    nn.Tanh: lambda delta, a: torch.ops.aten.tanh_backward.grad_input(delta, a, grad_input=delta),
    nn.ReLU: lambda delta, a: torch.ops.aten.threshold_backward.grad_input(
        delta, a, 0, grad_input=delta
    ),
}


class ValueMinibatches:
    """Losses of minibatches, whose gradients it leaves in the parameters' ``grad``.

    The tensors there are used again by the next minibatch: what keeps one has to copy it.

    Args:
        layers: What :func:`hand_written` found.
        features: The rollout's, [N, D].
        returns: Targets, [N].
        batch_size: Rows per minibatch; the last of an epoch may have fewer.
    """

    def __init__(self, layers: Layers, features: Tensor, returns: Tensor, batch_size: int) -> None:
        self.features = features
        self.returns = returns.unsqueeze(1)
        self.batch_size = batch_size
        self.linear = [linear for linear, _ in layers]
        self.forward = [_FORWARD.get(type(activation)) for _, activation in layers]
        self.backward = [_BACKWARD.get(type(activation)) for _, activation in layers]
        rows = min(batch_size, len(features))
        self.activations = [features.new_empty(rows, linear.out_features) for linear in self.linear]
        self.gradients = [
            [None if p is None else torch.empty_like(p) for p in (linear.weight, linear.bias)]
            for linear in self.linear
        ]
        self.deltas = [features.new_empty(rows, linear.in_features) for linear in self.linear]

    def epoch(self) -> Iterator[float]:
        """Yields the loss of every minibatch of a random order, with its gradients in place."""
        order = torch.randperm(len(self.returns)).to(self.returns.device)
        pieces = (column[order].split(self.batch_size) for column in (self.features, self.returns))
        for x, y in zip(*pieces, strict=True):
            yield self._differentiate(x, y)

    @torch.no_grad()
    def _differentiate(self, x: Tensor, y: Tensor) -> float:
        size = len(x)
        inputs, a = [], x
        for linear, activate, buffer in zip(
            self.linear, self.forward, self.activations, strict=True
        ):
            inputs.append(a)
            out = buffer[:size]
            if linear.bias is None:
                a = torch.mm(a, linear.weight.T, out=out)
            else:
                a = torch.addmm(linear.bias, a, linear.weight.T, out=out)
            if activate is not None:
                activate(a)
        delta = a.sub_(y)
        flat = delta.view(-1)
        loss = float(torch.dot(flat, flat)) / size
        delta.mul_(2 / size)
        for i in reversed(range(len(self.linear))):
            linear = self.linear[i]
            weight, bias = self.gradients[i]
            if linear.weight.requires_grad:
                linear.weight.grad = torch.mm(delta.T, inputs[i], out=weight)
            if linear.bias is not None and linear.bias.requires_grad:
                linear.bias.grad = torch.sum(delta, 0, out=bias)
            if i > 0:
                delta = torch.mm(delta, linear.weight, out=self.deltas[i][:size])
                differentiate = self.backward[i - 1]
                if differentiate is not None:
                    differentiate(delta, inputs[i])
        return loss


def hand_written(
    policy: ActorCriticPolicy, batch: Batch, batch_size: int
) -> ValueMinibatches | None:
    """Returns the minibatches of a plain value network, or None if it is another."""
    layers = critic_layers(policy, policy.observation_space)
    if layers is None:
        return None
    *hidden, (_, last) = layers
    known = last is None and all(
        activation is None or type(activation) in _FORWARD for _, activation in hidden
    )
    parameters = [p for linear, _ in layers for p in linear.parameters()]
    tied = len({id(p) for p in parameters}) < len(parameters)  # then a weight has two gradients
    hooked = any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters)
    if not known or tied or hooked:
        return None
    with torch.no_grad():  # the policy's own method takes no extractor where these are separate
        features = BaseModel.extract_features(
            policy, batch.observations, policy.vf_features_extractor
        )
    return ValueMinibatches(layers, features, batch.returns, batch_size)
