"""How much memory a search takes at most, by torch's profiler."""

import pytest
import torch
from torch import nn
from torch.profiler import profile

from npg.optim import EvolutionStrategies, MLEGuidedSearch


def peak_bytes(function):
    """The most that was allocated at a time inside a call, beyond what there was before."""
    with profile(profile_memory=True) as recorded:
        function()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def model_of(width=850, layers=3):  # more numbers than noise is kept of
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))


def size_of(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def guided(model, x):
    def closure():
        loss = model(x).square().mean()
        return loss, loss.detach()

    optimizer = MLEGuidedSearch(model)
    return lambda: optimizer.step(closure)


def in_place(model, x):
    optimizer = EvolutionStrategies(model, candidates=4, chunk_size=1)
    return lambda: optimizer.step(lambda: model(x).square().mean())


@pytest.mark.parametrize("make", [guided, in_place])
def test_a_step_takes_two_copies_of_the_parameters_beside_them(make):
    # The gradient, or direction, and the start: with the parameters themselves 1.5 times what
    # parameters and gradients take. Noise and activations are small beside them.
    model, x = model_of(), torch.randn(2, 850)
    step = make(model, x)
    step()
    assert 1.9 < peak_bytes(step) / size_of(model) < 2.2


def test_the_measure_sees_a_gradient():
    model, x = model_of(), torch.randn(2, 850)
    peak = peak_bytes(lambda: model(x).square().mean().backward())
    assert 1.0 <= peak / size_of(model) < 1.4
