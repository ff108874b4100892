"""Hand-written value gradients: autograd's for every plain network, and none for any other."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from agents import TRPO
from agents.critics import AdamCritic
from agents.plain_networks import critic_layers
from agents.rollout import Batch
from agents.value_minibatches import ValueMinibatches, hand_written
from tests.agents.helpers import DICTIONARY, IMAGE, VECTOR, SharedMlp, Toy, small, vector_env
from tests.agents.test_critics import Budget


def model_of(space=VECTOR, policy="MlpPolicy", **policy_kwargs) -> TRPO:
    env = vector_env(lambda: Toy(space))
    return small(TRPO, env, policy=policy, policy_kwargs=policy_kwargs)


def samples(space=VECTOR, size: int = 50) -> Batch:
    observations = (
        {key: torch.randn(size, *box.shape) for key, box in space.spaces.items()}
        if hasattr(space, "spaces")
        else torch.randn(size, *space.shape)
    )
    nothing = torch.zeros(size)
    return Batch(observations, nothing, nothing, nothing, torch.randn(size), nothing)


def trained(layers) -> list[nn.Parameter]:
    return [p for linear, _ in layers for p in linear.parameters() if p.requires_grad]


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("widths", [[], [5], [7, 4], [3, 6, 5]])
@pytest.mark.parametrize("size", [48, 50, 9])
def test_losses_and_gradients_are_those_of_autograd(
    activation, widths: list[int], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(activation_fn=activation, net_arch={"pi": [4], "vf": widths})
    model.policy.double()
    if widths:  # a layer without a bias, one that is frozen
        model.policy.mlp_extractor.value_net[0].bias = None
        model.policy.mlp_extractor.value_net[-2].weight.requires_grad_(False)
    features, returns = torch.randn(size, 3).double(), torch.randn(size).double()
    layers = critic_layers(model.policy, VECTOR)
    order = torch.randperm(size)
    monkeypatch.setattr(torch, "randperm", lambda _: order)
    parameters = trained(layers)
    seen = 0
    for loss in ValueMinibatches(layers, features, returns, 16).epoch():
        rows = order[seen : seen + 16]
        exact = F.mse_loss(_values(layers, features[rows]), returns[rows, None])
        assert loss == pytest.approx(exact.item(), rel=1e-12)
        for p, gradient in zip(parameters, torch.autograd.grad(exact, parameters), strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-10, atol=1e-12)
        seen += len(rows)
    assert seen == size
    frozen = [p for p in model.policy.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)


def _values(layers, x: torch.Tensor) -> torch.Tensor:
    for linear, activation in layers:
        x = linear(x) if activation is None else activation(linear(x))
    return x


@pytest.mark.parametrize("space", [VECTOR, DICTIONARY], ids=["vector", "dictionary"])
@pytest.mark.parametrize("optimizer", ["Adam", "SGD"])
@pytest.mark.parametrize("share", [True, False])
def test_the_fit_is_that_of_autograd(
    space, optimizer: str, share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = "MlpPolicy" if space is VECTOR else "MultiInputPolicy"
    model = model_of(
        space,
        policy,
        optimizer_class=getattr(torch.optim, optimizer),
        share_features_extractor=share,
    )
    model.policy.optimizer.param_groups[0]["lr"] = 0.01
    batch = samples(space)
    assert hand_written(model.policy, batch, 16) is not None
    start = copy.deepcopy(model.policy.state_dict())
    results = []
    for by_hand in (True, False):
        if not by_hand:
            monkeypatch.setattr("agents.critics.hand_written", lambda *_: None)
        model.policy.load_state_dict(start)
        model.policy.optimizer.state.clear()
        torch.manual_seed(0)
        loss = AdamCritic(model.policy, model.parts, 3, 16).fit(batch, Budget())
        results.append([torch.tensor(loss), *(p.detach().clone() for p in model.parts.critic)])
        assert all(p.grad is None for p in model.policy.parameters())
    for ours, autograd in zip(*results, strict=True):
        torch.testing.assert_close(ours, autograd, rtol=1e-4, atol=1e-5)
    assert not torch.equal(results[0][1], start["mlp_extractor.value_net.0.weight"])


def test_the_order_in_which_a_layer_keeps_its_parameters_does_not_matter() -> None:
    model = model_of(net_arch={"pi": [4], "vf": [5]})
    layer = model.policy.mlp_extractor.value_net[0]
    weight = layer.weight
    del layer.weight
    layer.weight = weight  # now after the bias, as after torch.nn.utils.prune.remove
    assert next(iter(layer._parameters)) == "bias"
    batch = samples()
    minibatches = hand_written(model.policy, batch, 50)
    next(minibatches.epoch())
    values = model.policy.predict_values(batch.observations).flatten()
    expected = torch.autograd.grad(F.mse_loss(values, batch.returns), [layer.weight, layer.bias])
    torch.testing.assert_close(layer.weight.grad, expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layer.bias.grad, expected[1], rtol=1e-4, atol=1e-6)


def _tie(policy) -> None:
    policy.mlp_extractor.value_net[2].weight = policy.mlp_extractor.value_net[0].weight


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.value_net.register_forward_hook(lambda *_: None),
        lambda p: p.value_net.register_full_backward_pre_hook(lambda *_: None),
        lambda p: p.value_net.weight.register_hook(lambda g: g * 0),
        lambda p: p.value_net.weight.register_post_accumulate_grad_hook(lambda _: None),
        lambda p: parametrizations.weight_norm(p.value_net),
        lambda p: setattr(p, "predict_values", p.predict_values),
        lambda p: p.mlp_extractor.value_net.append(nn.Dropout(0.5)),
        lambda p: p.mlp_extractor.value_net.__setitem__(1, nn.GELU()),
        lambda p: setattr(p, "value_net", nn.Sequential(p.value_net)),
        _tie,
    ],
    ids=[
        "hook",
        "backward hook",
        "weight's hook",
        "weight's second hook",
        "weight norm",
        "patched",
        "dropout",
        "gelu",
        "sequential head",
        "tied weights",
    ],
)
def test_anything_else_is_left_to_autograd(change) -> None:
    model = model_of(net_arch={"pi": [4], "vf": [3, 3]})
    assert hand_written(model.policy, samples(), 16) is not None
    change(model.policy)
    assert hand_written(model.policy, samples(), 16) is None


def test_other_extractors_are_left_to_autograd() -> None:
    shared = model_of(features_extractor_class=SharedMlp)
    assert hand_written(shared.policy, samples(), 16) is None
    flattened = model_of(IMAGE)  # whose pixels are scaled in between
    assert hand_written(flattened.policy, samples(IMAGE), 16) is None
