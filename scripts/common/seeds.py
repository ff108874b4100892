"""Seeds for the parts of a run, so that no two parts see the same episodes."""

import numpy as np

TRAINING, EVALUATION, REPLAY, SPLIT, ORDER, OPTIMIZER, IMBALANCE = range(7)


def derived(seed: int, purpose: int, steps: int = 0) -> int:
    """Returns a seed that belongs to a run's seed, a purpose and a number of steps."""
    words = np.random.SeedSequence([seed, purpose, steps]).generate_state(1)
    return int(words[0]) // 4  # leaves room for `seed + i` in a signed 32-bit integer
