"""Two ranks with four environments each against one process with all eight."""

import numpy as np
import pytest
import torch

from agents import A2C, ACKTR, ES, NPG, PPO, REINFORCE, TRPO
from agents.critics import Snapshot
from envs import LeanVecNormalize
from npg import ranks
from npg.errors import ConfigurationError
from npg.likelihoods import families
from tests.agents.helpers import BOX, DISCRETE, VECTOR, SharedMlp, Toy, small, vector_env
from tests.agents.rollouts import Silent
from tests.processes import in_two_processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without it"
)
STEPS, ENVS = 32, 8
SHARED = {"features_extractor_class": SharedMlp, "share_features_extractor": True}
# Agent, its settings and its actions.
VARIANTS = {
    "trpo adam": (TRPO, {"critic": "adam"}, BOX),
    "trpo gauss-newton": (TRPO, {"critic": "gauss-newton"}, DISCRETE),
    "trpo dense": (TRPO, {"curvature": "fisher-dense", "critic": "gauss-newton"}, BOX),
    "trpo kfac": (TRPO, {"cg_preconditioner": "kfac", "critic": "gauss-newton"}, BOX),
    "trpo shared": (TRPO, {"critic": "adam", "policy_kwargs": SHARED}, BOX),
    "npg": (NPG, {"critic": "gauss-newton"}, DISCRETE),
    "acktr": (ACKTR, {"critic_steps": 2}, BOX),
    "acktr shared": (ACKTR, {"policy_kwargs": SHARED}, DISCRETE),
    "a2c": (A2C, {"normalize_advantage": True}, DISCRETE),
    "a2c shared": (A2C, {"normalize_advantage": True, "policy_kwargs": SHARED}, BOX),
    # Minibatches of one sample are nobody's on one of the ranks.
    "ppo": (PPO, {"batch_size": 51, "clip_range_vf": 0.2}, BOX),
    "ppo shared": (PPO, {"batch_size": 51, "policy_kwargs": SHARED}, DISCRETE),
    "reinforce": (REINFORCE, {"baseline": "mean"}, DISCRETE),
}


def made(name: str, num_envs: int):
    agent, settings, actions = VARIANTS[name]
    env = vector_env(lambda: Toy(VECTOR, actions), num_envs)
    model = small(agent, env, **{"n_steps": STEPS, **settings})
    model._setup_learn(STEPS * ENVS, Silent())
    with torch.no_grad():  # the same on all, and no entry of a bias zero
        torch.manual_seed(1)
        for parameter in model.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def labels_alike(patch: pytest.MonkeyPatch) -> None:
    """Labels of a function of the prediction: those that two ranks draw are not one process's."""
    patch.setattr(families, "_noise", lambda like, generator: torch.full_like(like, 0.5))
    patch.setattr(
        families.CategoricalLikelihood, "sample", lambda self, d, generator: d.probs.argmax(-1)
    )


def update(name: str, first: int, num_envs: int) -> tuple:
    """Parameters before and after an update from some of the environments of one rollout."""
    model = made(name, num_envs)
    buffer, own = model.rollout_buffer, slice(first, first + num_envs)
    drawn = np.random.default_rng(0)
    buffer.reset()
    for column in (buffer.observations, buffer.actions, buffer.rewards, buffer.episode_starts):
        shape = (STEPS, ENVS, *column.shape[2:])
        noise = drawn.normal(size=shape)
        if column is buffer.actions and VARIANTS[name][2] is DISCRETE:
            noise = drawn.integers(3, size=shape)
        if column is buffer.episode_starts:
            noise = noise > 1.5
        column[:] = noise[:, own]
    buffer.pos, buffer.full = STEPS, True
    with torch.no_grad():
        observations = torch.as_tensor(buffer.observations).flatten(0, 1)
        actions = torch.as_tensor(buffer.actions).flatten(0, 1)
        if VARIANTS[name][2] is DISCRETE:
            actions = actions.flatten().long()
        values, log_probs, _ = model.policy.evaluate_actions(observations, actions)
    buffer.values[:] = values.reshape(STEPS, num_envs)
    buffer.log_probs[:] = log_probs.reshape(STEPS, num_envs)
    buffer.compute_returns_and_advantage(torch.zeros(num_envs), np.zeros(num_envs, dtype=bool))
    before = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002 - as minibatches draw
    model.train()
    after = torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach()
    logged = {key: float(value) for key, value in model.logger.name_to_value.items()}
    return before, after, logged


def _process(rank: int) -> dict:
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        labels_alike(patch)
        for name in VARIANTS:
            found[name] = update(name, rank * ENVS // 2, ENVS // 2)[1:]
    found["learnt"] = learnt(rank)
    found["refused"] = refused(rank)
    found["undone"] = undone(rank)
    with ranks.alone():
        found["alone"] = update("trpo gauss-newton", 0, ENVS)[1] if rank == 0 else None
    return found


def undone(rank: int) -> tuple[bool, int]:
    """Whether an update that left the numbers on one rank is undone on both, and counted."""
    model = small(TRPO, vector_env(lambda: Toy(VECTOR, BOX), 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Snapshot, "finite", lambda _: rank == 0)
        model.learn(1)  # ranks begin with one policy
        before = torch.nn.utils.parameters_to_vector(model.policy.parameters()).clone()
        model.learn(1)
    after = torch.nn.utils.parameters_to_vector(model.policy.parameters())
    return torch.equal(before, after), model.skipped_updates


def refused(rank: int) -> list[str]:
    """What ranks say that cannot train together."""
    said = []
    for make in (
        lambda: small(TRPO, vector_env(lambda: Toy(VECTOR, BOX), 1 + rank)).learn(100),
        lambda: small(A2C, vector_env(lambda: Toy(VECTOR, BOX), 2), optimizer="adahessian"),
    ):
        with pytest.raises(ConfigurationError) as error:
            make()
        said.append(str(error.value))
    return said


def learnt(rank: int) -> dict:
    """What ranks hold after whole trainings, each with an end that only rank 0 asks for."""

    class Stop(Silent):
        def _on_step(self) -> bool:
            return self.n_calls < 100 or rank != 0

    found = {}
    for agent, settings in ((TRPO, {}), (ES, {"n_candidates": 10}), (PPO, {})):
        env = LeanVecNormalize(vector_env(lambda: Toy(VECTOR, BOX), 2))
        model = small(agent, env, **settings)
        model.learn(100_000, Stop())
        found[agent.__name__] = {
            "parameters": torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach(),
            "steps": model.num_timesteps,
            "seen": float(model.get_vec_normalize_env().obs_rms.count),
            "mean": torch.as_tensor(model.get_vec_normalize_env().obs_rms.mean),
            "first": torch.as_tensor(env.unwrapped.envs[0].np_random.normal()),
        }
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    return in_two_processes(_process, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ranks_take_the_step_of_one_process(name, results, monkeypatch):
    labels_alike(monkeypatch)
    before, after, logged = update(name, 0, ENVS)
    (first, first_logged), (second, _) = results[0][name], results[1][name]
    assert torch.equal(first, second), "ranks do not drift apart"
    assert (after - before).norm() > 1e-4
    assert (first - after).abs().max() <= 1e-5
    assert (first - after).norm() <= 1e-3 * (after - before).norm()
    for key in ("policy_objective", "policy_loss", "value_loss", "kl_divergence", "approx_kl"):
        if f"train/{key}" in logged:
            assert first_logged[f"train/{key}"] == pytest.approx(
                logged[f"train/{key}"], rel=2e-3, abs=1e-5
            )


@pytest.mark.parametrize("agent", ["TRPO", "ES", "PPO"])
def test_ranks_learn_as_one(agent, results):
    first, second = (found["learnt"][agent] for found in results)
    assert torch.equal(first["parameters"], second["parameters"])
    assert first["steps"] == second["steps"] > 200
    assert torch.equal(first["mean"], second["mean"])
    assert first["seen"] == second["seen"]
    assert not torch.equal(first["first"], second["first"]), "environments differ"


def test_an_update_that_fails_on_one_rank_is_undone_on_all(results):
    assert [found["undone"] for found in results] == [(True, 2), (True, 2)]


def test_what_ranks_cannot_do_together_is_refused_by_all(results):
    for found in results:
        sizes, optimizer = found["refused"]
        assert "the same sizes; this one has {'num_envs': " in sizes
        assert "optimizer='adahessian'" in optimizer


def test_one_rank_can_train_for_itself(results, monkeypatch):
    labels_alike(monkeypatch)
    _, after, _ = update("trpo gauss-newton", 0, ENVS)
    assert torch.equal(results[0]["alone"], after)


def test_alone_nothing_is_sent():
    tensor = torch.randn(3)
    kept = tensor.clone()
    ranks.average_([tensor], 0.5)
    assert torch.equal(tensor, kept)
    assert ranks.averages([1.0, 2.0]) == [1.0, 2.0]
    assert not ranks.any_rank(False)


def test_the_mean_of_equal_numbers_is_that_number(monkeypatch):
    """Sizes are compared by it, with any number of ranks."""
    monkeypatch.setattr(ranks, "summed", lambda tensor: tensor * ranks.count())
    numbers = [float(n) for n in range(2000)]
    for count in range(2, 100):
        monkeypatch.setattr(ranks, "count", lambda count=count: count)
        assert ranks.averages(numbers) == numbers
