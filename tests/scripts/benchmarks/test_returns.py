"""The rows of returns: interquartile means with intervals, and who is above whom."""

import json

import numpy as np
from benchmarks import returns
from benchmarks.returns import STUDIES
from rliable import metrics

SEEDS = {"npg-a2c": range(8), "sb3-a2c": range(6)}


def written(directory):
    """Runs whose evaluations have these means."""
    draw = np.random.default_rng(0)
    scores = {library: draw.normal(-500, 90, len(seeds)) for library, seeds in SEEDS.items()}
    for library, values in scores.items():
        for seed, score in enumerate(values):
            path = directory / f"{library}_Hopper-v5_{seed}.json"
            path.write_text(json.dumps({"evaluation": [score - 1, score + 1]}))
    return list(scores.values())


def test_a_comparison(tmp_path):
    ours, theirs = written(tmp_path)
    arguments = (tmp_path, "Hopper-v5", STUDIES["a2c"], "sb3-a2c", "Hopper", SEEDS)
    means, chance = returns._compare(*arguments)
    our_mean, their_mean = (metrics.aggregate_iqm(side[:, None]) for side in (ours, theirs))
    assert means.ours.startswith(f"IQM {our_mean:.0f} [")
    assert means.other.startswith(f"stable-baselines3 IQM {their_mean:.0f} [")
    assert np.isclose(means.ratio, their_mean / our_mean)  # more than 1 is better of negative ones
    above = metrics.probability_of_improvement(ours[:, None], theirs[:, None])
    assert np.isclose(chance.ratio, above)


def test_the_intervals_are_the_same_every_time(tmp_path):
    written(tmp_path)
    arguments = (tmp_path, "Hopper-v5", STUDIES["a2c"], "sb3-a2c", "Hopper", SEEDS)
    first = returns._compare(*arguments)
    np.random.seed(1)  # noqa: NPY002 - of what rliable draws from
    assert returns._compare(*arguments) == first
