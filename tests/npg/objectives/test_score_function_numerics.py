"""The score function where numbers are large, or of few digits, or none."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from npg.errors import ConfigurationError, NumericalError
from npg.objectives import macro_f1, score_function

LABELS = torch.arange(600) % 3


def gradient_of(logits, reward, **options):
    """Of the same draws, whatever the dtype: they are those of a seed."""
    logits = logits.detach().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    score_function(logits, reward, generator=generator, **options).backward()
    return logits.grad


def hit(drawn):
    return (drawn == LABELS).double()


@pytest.mark.parametrize("offset", [1e6, -1e8])
def test_a_constant_in_the_rewards_is_nothing(offset):
    logits = torch.randn(600, 3, dtype=torch.float32)
    plain = gradient_of(logits, hit)
    torch.testing.assert_close(gradient_of(logits, lambda d: hit(d) + offset), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_keep_the_differences_of_rewards(dtype):
    # F1 of 600 samples moves by thousandths, which bfloat16 near 1 has not.
    logits = (
        3 * torch.nn.functional.one_hot(LABELS, 3) + torch.randn(600, 3, dtype=torch.float32)
    ).to(dtype)

    def reward(drawn):
        return 0.9 + macro_f1(drawn, LABELS, 3) / 100

    half = gradient_of(logits, reward, samples=64).float()
    single = gradient_of(logits.float(), reward, samples=64)
    assert float(single.norm()) > 0
    assert float(cosine_similarity(half.flatten(), single.flatten(), dim=0)) > 0.99


def test_rewards_beyond_the_model_s_numbers_are_told():
    logits = torch.randn(600, 3, dtype=torch.float32)
    with pytest.raises(NumericalError, match=r"not finite in torch\.float32"):
        gradient_of(logits, lambda drawn: 1e300 * hit(drawn).numpy())


def test_a_baseline_that_is_not_finite_is_told():
    with pytest.raises(NumericalError, match="baseline"):
        gradient_of(
            torch.randn(600, 3, dtype=torch.float32), hit, baseline=torch.full((600,), torch.nan)
        )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"samples": 2.5}, "samples must be a whole number"),
        ({"samples": "4"}, "samples must be a whole number"),
        ({"baseline": 0.5}, "baseline must be"),
        ({"baseline": np.ones(8)}, "baseline must be"),
        ({"reward": torch.ones(3)}, "reward must be a function"),
        ({"reward": lambda drawn: hit(drawn) * 1j}, "complex"),
    ],
)
def test_arguments_of_other_types(options, told):
    with pytest.raises(ConfigurationError, match=told):
        score_function(torch.randn(600, 3, dtype=torch.float32), **{"reward": hit, **options})


def test_no_samples():
    with pytest.raises(ConfigurationError, match="no samples"):
        score_function(torch.randn(0, 3), lambda drawn: drawn.double())
