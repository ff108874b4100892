"""Every environment acts by its own candidate's parameters, as that candidate's policy would."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from agents import TRPO
from agents import candidates as candidates_module
from agents.acting import bounding
from agents.candidates import CandidateMirror, CandidateModules, candidate_actor
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    DICTIONARY,
    DISCRETE,
    IMAGE,
    VECTOR,
    BatchNorm,
    SharedMlp,
    SmallCnn,
    agent_of,
    frozen,
)

ENVS = 5
DOUBLES = spaces.Box(-9, 9, (2, 3), np.float64)


class Branching(SharedMlp):
    """Looks at a value, which cannot be batched."""

    def forward(self, observations: Tensor) -> Tensor:
        features = super().forward(observations)
        return features if features.sum() > 0 else 2 * features


KINDS = {
    "plain": (CandidateMirror, VECTOR, {}),
    "relu": (CandidateMirror, DOUBLES, {"net_arch": [5, 7, 6], "activation_fn": nn.ReLU}),
    "linear": (CandidateMirror, VECTOR, {"net_arch": []}),
    "dictionary": (CandidateMirror, DICTIONARY, {}),
    "elu": (CandidateModules, VECTOR, {"activation_fn": nn.ELU}),
    "shared": (CandidateModules, VECTOR, {"features_extractor_class": SharedMlp}),
    "branching": (CandidateModules, VECTOR, {"features_extractor_class": Branching}),
    "normalising": (CandidateModules, VECTOR, {"features_extractor_class": BatchNorm}),
    "image": (CandidateModules, IMAGE, {"features_extractor_class": SmallCnn}),
    "number": (CandidateModules, spaces.Discrete(4), {}),
}


def observations_of(space: spaces.Space, rows: int = ENVS):
    space.seed(3)
    samples = [space.sample() for _ in range(rows)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def perturbed(model: TRPO, rows: int = ENVS) -> tuple[list[Tensor], Tensor]:
    """Parameters of the actor but the deviation, and candidates for each environment."""
    log_std = getattr(model.policy, "log_std", None)
    parameters = [p for p in model.parts.actor if p is not log_std]
    own = torch.cat([p.detach().flatten() for p in parameters])
    return parameters, own + torch.randn(rows, len(own))


def seated(model: TRPO, deterministic: bool = True, rows: int = ENVS):
    model.policy.set_training_mode(False)
    parameters, candidates = perturbed(model, rows)
    space = model.observation_space
    actor = candidate_actor(model.policy, space, rows, parameters, deterministic)
    for row in reversed(range(rows)):
        actor.seat(row, candidates[row])
    return actor, candidates


def predicted(model: TRPO, candidates: Tensor, observations) -> np.ndarray:
    """What each candidate's own policy does, one after another."""
    places = {id(p): i for i, p in enumerate(model.policy.parameters())}
    actions = []
    for row, candidate in enumerate(candidates):
        twin = frozen(model.policy)
        own = list(twin.parameters())
        vector_to_parameters(candidate, [own[places[id(p)]] for p in perturbed(model)[0]])
        if isinstance(observations, dict):
            one = {key: column[row] for key, column in observations.items()}
        else:
            one = observations[row]
        actions.append(twin.predict(one, deterministic=True)[0])
    return np.stack(actions)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("actions", ACTIONS)
def test_actions_are_those_of_each_candidates_own_policy(actions: str, kind: str) -> None:
    expected_class, space, settings = KINDS[kind]
    model = agent_of(space, ACTIONS[actions], **settings)
    observations = observations_of(space)
    actor, candidates = seated(model)
    assert type(actor) is expected_class
    before = copy.deepcopy(model.policy.state_dict())
    found = bounding(model.policy, model.action_space)(actor.act(observations))
    expected = predicted(model, candidates, observations)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=1e-5)
    assert len(np.unique(expected.reshape(ENVS, -1), axis=0)) > 1  # they do differ
    after = model.policy.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    copy.deepcopy(model.policy)  # no trace of the batch is left in it


def test_only_what_cannot_be_batched_is_called_one_by_one() -> None:
    for kind, (_, space, settings) in KINDS.items():
        actor, _ = seated(agent_of(space, BOX, **settings))
        if isinstance(actor, CandidateModules):
            actor.act(observations_of(space))
            assert actor.batched == (kind != "branching")


def test_what_cannot_be_batched_is_told_of_once_and_not_tried_again(monkeypatch) -> None:
    _, space, settings = KINDS["branching"]
    model, observations = agent_of(space, BOX, **settings), observations_of(KINDS["branching"][1])
    actor, _ = seated(model)
    with pytest.warns(UserWarning, match="vmap cannot batch ActorCriticPolicy") as told:
        actor.act(observations)
    assert len(told) == 1
    monkeypatch.setattr(candidates_module, "vmap", None)  # calling it would be an error
    later, _ = seated(model)  # of the next population
    later.act(observations)
    assert seated(model, deterministic=False)[0].batched


def test_faults_that_are_not_those_of_batches_are_raised_and_not_remembered() -> None:
    _, space, settings = KINDS["shared"]
    model = agent_of(space, BOX, **settings)
    actor, _ = seated(model)
    with pytest.raises(RuntimeError):
        actor.act(np.zeros((ENVS, 7), np.float32))
    assert actor.batched
    assert seated(model)[0].batched


@pytest.mark.parametrize("kind", ["plain", "shared"])
def test_a_seat_is_taken_anew_without_touching_the_others(kind: str) -> None:
    _, space, settings = KINDS[kind]
    model = agent_of(space, BOX, **settings)
    observations = observations_of(space)
    actor, candidates = seated(model)
    first = actor.act(observations)
    actor.seat(2, candidates[0])
    second = actor.act(observations)
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(first[others], second[others])
    candidates[2] = candidates[0]
    bounded = bounding(model.policy, BOX)
    expected = predicted(model, candidates, observations)
    np.testing.assert_allclose(bounded(second), expected, atol=2e-6)


@pytest.mark.parametrize("kind", ["plain", "shared", "branching"])
def test_frozen_parameters_are_the_policys_own(kind: str) -> None:
    _, space, settings = KINDS[kind]
    model = agent_of(space, BOX, **settings)
    model.policy.action_net.bias.requires_grad_(False)
    model.parts.actor = [p for p in model.parts.actor if p is not model.policy.action_net.bias]
    actor, candidates = seated(model)
    observations = observations_of(space)
    found = bounding(model.policy, BOX)(actor.act(observations))
    np.testing.assert_allclose(found, predicted(model, candidates, observations), atol=2e-6)


# ------------------------------------------------------------------------------ actions are drawn

DRAWS = 600


@pytest.mark.parametrize("kind", ["plain", "shared", "branching"])
def test_drawn_actions_are_gaussian_around_each_candidates_mean(kind: str) -> None:
    _, space, settings = KINDS[kind]
    model = agent_of(space, BOX, **settings)
    observations = observations_of(space)
    actor, candidates = seated(model, deterministic=False)
    draws = np.stack([actor.act(observations) for _ in range(DRAWS)])
    greedy, again = seated(model)[0], candidates
    for row, candidate in enumerate(again):
        greedy.seat(row, candidate)
    deviation = model.policy.log_std.detach().exp().numpy()
    standard = (draws - greedy.act(observations)) / deviation
    for column in standard.reshape(DRAWS, -1).T:
        assert stats.kstest(column, "norm").pvalue > 1e-6
    correlation = np.corrcoef(standard.reshape(DRAWS, -1).T) - np.eye(2 * ENVS)
    assert np.abs(correlation).max() < 5 / np.sqrt(DRAWS)
    # No draw comes twice, also beyond a block of noise; single numbers may be alike by chance.
    assert len(np.unique(draws.reshape(DRAWS, -1), axis=0)) == DRAWS


@pytest.mark.parametrize("kind", ["plain", "shared"])
def test_drawn_choices_follow_each_candidates_probabilities(kind: str) -> None:
    _, space, settings = KINDS[kind]
    model = agent_of(space, DISCRETE, **settings)
    observations = observations_of(space)
    actor, candidates = seated(model, deterministic=False)
    draws = np.stack([actor.act(observations) for _ in range(DRAWS)])
    parameters = perturbed(model)[0]
    for row in range(ENVS):
        vector_to_parameters(candidates[row], parameters)
        with torch.no_grad():
            tensors = torch.as_tensor(observations[row : row + 1])
            p = model.policy.get_distribution(tensors).distribution.probs[0].double().numpy()
        counts = np.bincount(draws[:, row], minlength=3)
        assert stats.chisquare(counts, DRAWS * p / p.sum()).pvalue > 1e-6
