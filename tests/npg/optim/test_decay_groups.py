"""Weight decay that spares biases and norms, in every optimizer that has any."""

import pytest
import torch
from torch import nn

from npg.errors import ConfigurationError
from npg.optim import create, names, takes, train_step


def network():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 6), nn.LayerNorm((6,)),
        nn.Unflatten(1, (2, 3)), nn.LayerNorm((2, 3)), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


DECAYING = [name for name in names() if takes(name, "weight_decay")]


def decays(optimizer):
    return {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", DECAYING)
class TestSparing:
    def test_weights_decay_and_nothing_else(self, name):
        model = network()
        options = {"likelihood": "categorical"} if takes(name, "likelihood") else {}
        optimizer = create(
            name, model, 0.1, weight_decay=0.25, decay_biases_and_norms=False, **options
        )
        weights = {model[0].weight, model[3].weight, model[8].weight}
        assert decays(optimizer) == {p: 0.25 * (p in weights) for p in model.parameters()}
        if name == "adafactor":  # torch's asks for a float where it decays by 0
            return
        images = torch.randn(4, 1, 4, 4)

        def forward():
            logits = model(images)
            return logits.square().sum(), logits

        train_step(optimizer, forward)

    def test_part_of_a_module(self, name):
        model = network()
        options = {"likelihood": "categorical"} if takes(name, "likelihood") else {}
        optimizer = create(
            name,
            model,
            0.1,
            weight_decay=0.25,
            decay_biases_and_norms=False,
            parameters=model[8].parameters(),
            **options,
        )
        assert decays(optimizer) == {model[8].weight: 0.25, model[8].bias: 0.0}

    def test_all_decay_unless_asked(self, name):
        model = network()
        options = {"likelihood": "categorical"} if takes(name, "likelihood") else {}
        assert set(decays(create(name, model, weight_decay=0.25, **options)).values()) == {0.25}


def test_parameters_without_a_module():
    parameters = [nn.Parameter(torch.ones(s)) for s in ((2, 2), (2,), ())]
    for name in ("adamw", "shampoo", "muon"):
        optimizer = create(name, iter(parameters), weight_decay=0.5, decay_biases_and_norms=False)
        assert list(decays(optimizer).values()) == [0.5, 0.0, 0.0]


def test_what_has_no_decay_and_what_is_grouped():
    with pytest.raises(ConfigurationError, match="has no weight_decay"):
        create("newton-cg", network(), decay_biases_and_norms=False)
    with pytest.raises(ConfigurationError, match="makes groups itself"):
        create("adamw", [{"params": list(network().parameters())}], decay_biases_and_norms=False)
