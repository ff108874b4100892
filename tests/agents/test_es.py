"""Evolution strategies: their update, what it moves, their checkpoints and arguments."""

import copy
import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from agents import ES, REINFORCE
from agents.es import EvolutionStrategies
from envs import LeanVecNormalize, make
from npg.errors import CheckpointError, ConfigurationError
from npg.optim import names
from tests.agents.checkpoints import equal_states
from tests.agents.helpers import (
    ACTIONS,
    BOX,
    DISCRETE,
    IMAGE,
    VECTOR,
    SharedMlp,
    SmallCnn,
    Toy,
    finite,
    parameters,
    same,
    small,
    vector_env,
)
from tests.agents.test_learning import Identity


def flat(model: ES) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.policy.optimizer.tensors()])


# ------------------------------------------------------------------------------------ the update


def test_the_update_is_the_optimizers_on_the_returns() -> None:
    model = small(ES, vector_env(lambda: Toy(VECTOR, BOX), 3))
    twin = copy.deepcopy(model.policy.optimizer)
    twin.ask()
    model.learn(1)
    assert len(np.unique(model._returns)) == model.n_candidates
    assert twin.tell(-model._returns).accepted
    theirs = torch.cat([p.detach().flatten() for p in twin.tensors()])
    assert torch.equal(flat(model), theirs)


def test_the_update_climbs_the_return_as_its_formula_says() -> None:
    """θ + lr / (n σ) Σ (R − mean R) ε for plain gradient descent and plain returns."""
    settings = {"shaping": "none", "learning_rate": 0.3, "sigma": 0.2}
    settings["policy_kwargs"] = {"optimizer_class": torch.optim.SGD}
    model = small(ES, vector_env(lambda: Toy(VECTOR, BOX), 3), **settings)
    start = flat(model)
    noise = (copy.deepcopy(model.policy.optimizer).ask() - start) / 0.2
    model.learn(1)
    centred = torch.from_numpy(model._returns - model._returns.mean())
    gradient = (centred @ noise.double()) / (len(centred) * 0.2)
    torch.testing.assert_close(flat(model), (start + 0.3 * gradient).float())


@pytest.mark.parametrize("shared", [False, True])
def test_only_what_the_actor_reads_is_moved(shared: bool) -> None:
    features = {"features_extractor_class": SharedMlp} if shared else {}
    model = small(ES, vector_env(lambda: Toy(VECTOR, BOX)), policy_kwargs=features)
    before = {name: p.clone() for name, p in model.policy.named_parameters()}
    model.learn(100)
    moved = {n for n, p in model.policy.named_parameters() if not torch.equal(p, before[n])}
    actor = {"mlp_extractor.policy_net.0", "action_net"}
    actor |= {"features_extractor.net.1"} if shared else set()
    assert moved == {f"{layer}.{kind}" for layer in actor for kind in ("weight", "bias")}


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("deterministic", [True, False])
def test_every_action_space(actions: str, deterministic: bool) -> None:
    env = vector_env(lambda: Toy(VECTOR, ACTIONS[actions]), 2)
    model = small(ES, env, deterministic=deterministic)
    before = parameters(model)
    model.learn(100)
    assert finite(model)
    assert not same(before, parameters(model))


def test_images() -> None:
    kwargs = {"features_extractor_class": SmallCnn}
    model = small(ES, vector_env(lambda: Toy(IMAGE), 2), "CnnPolicy", policy_kwargs=kwargs)
    before = parameters(model)
    model.learn(50)
    assert finite(model)
    assert not same(before, parameters(model))


def test_logged_keys() -> None:
    model = small(ES, vector_env(lambda: Monitor(Toy(VECTOR, BOX)), 3))
    model.learn(1)
    logged = model.logger.name_to_value
    assert logged["train/return_mean"] == pytest.approx(model._returns.mean())
    assert logged["train/return_std"] == pytest.approx(model._returns.std())
    assert logged["train/return_best"] == model._returns.max()
    assert logged["train/dropped"] == 0
    assert logged["train/sigma"] == pytest.approx(0.1)
    assert logged["train/learning_rate"] == model.learning_rate
    assert logged["train/gradient_norm"] > 0
    assert logged["train/n_updates"] == 1


def test_learning_rate_schedules_reach_the_optimizer() -> None:
    model = small(
        ES, vector_env(lambda: Toy(death=0, limit=8)), learning_rate=lambda left: 0.1 * left
    )
    seen = []
    train = model.train
    model.train = lambda: (train(), seen.append(model.policy.optimizer.base.param_groups[0]["lr"]))
    model.learn(4 * 8 * 8)
    np.testing.assert_allclose(seen, [0.075, 0.05, 0.025, 0.0])
    assert model.num_timesteps == 4 * 8 * 8


def test_adaptation_moves_sigma() -> None:
    for adapt in ("none", "global", "separable"):
        model = small(ES, vector_env(Toy), adapt=adapt).learn(200)
        moved = model.logger.name_to_value["train/sigma"] != pytest.approx(0.1)
        assert moved == (adapt != "none")


# ----------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "sgd"}, {"adapt": "separable"}, {"deterministic": False}],
    ids=["adam", "sgd", "adaptive", "drawn"],
)
def test_training_goes_on_as_if_it_had_not_stopped(settings, tmp_path) -> None:
    """Toy draws its episodes, so both begin with environments that are seeded anew."""
    env = LeanVecNormalize(vector_env(lambda: Toy(VECTOR, BOX), 3))
    model = small(ES, env, **settings).learn(150)
    model.save(tmp_path / "model")
    trained = []
    for _ in range(2):
        loaded = ES.load(tmp_path / "model", env=vector_env(lambda: Toy(VECTOR, BOX), 3))
        loaded.env.seed(5)
        loaded.learn(150, reset_num_timesteps=False)
        trained.append(loaded)
    assert same(parameters(trained[0]), parameters(trained[1]))
    assert model._n_updates < trained[0]._n_updates

    # The same from the agent that was never saved.
    ES.load(tmp_path / "model")  # only to set the generators
    model.env.seed(5)
    model._last_obs = None
    model.learn(150, reset_num_timesteps=False)
    assert same(parameters(model), parameters(trained[0]))
    ours, theirs = model.policy.optimizer.state_dict(), trained[0].policy.optimizer.state_dict()
    assert equal_states(ours, theirs)
    assert model.num_timesteps == trained[0].num_timesteps
    first, second = (m.get_vec_normalize_env().obs_rms for m in (model, trained[0]))
    np.testing.assert_array_equal(first.mean, second.mean)


def test_arguments_are_kept_and_other_agents_files_refused(tmp_path) -> None:
    model = small(ES, vector_env(Toy), n_episodes=2, shaping="utilities", max_episode_steps=7)
    model.save(tmp_path / "es")
    loaded = ES.load(tmp_path / "es")
    assert (loaded.n_episodes, loaded.shaping, loaded.max_episode_steps) == (2, "utilities", 7)
    changed = ES.load(tmp_path / "es", env=vector_env(Toy), sigma=0.3, n_candidates=4).learn(1)
    assert changed.logger.name_to_value["train/sigma"] == pytest.approx(0.3)
    assert len(changed._returns) == 4
    small(REINFORCE, vector_env(Toy)).save(tmp_path / "reinforce")
    for agent, name in ((ES, "reinforce"), (REINFORCE, "es")):
        with pytest.raises(CheckpointError, match="another algorithm"):
            agent.load(tmp_path / name)


@pytest.mark.parametrize("adapt", ["none", "global", "separable"])
def test_another_sigma_is_taken_at_load_and_later_and_the_same_one_keeps_what_it_became(
    adapt: str, tmp_path
) -> None:
    model = small(ES, vector_env(Toy), adapt=adapt).learn(200)
    became = model.logger.name_to_value["train/sigma"]
    model.save(tmp_path / "es")

    def asked(loaded: ES) -> float:
        """The deviation that the next population is drawn with."""
        seen = []
        tell = loaded.policy.optimizer.tell
        loaded.policy.optimizer.tell = lambda values: seen.append(tell(values)) or seen[0]
        loaded.learn(1)
        return seen[0].sigma

    kept = ES.load(tmp_path / "es", env=vector_env(Toy), sigma=0.1)
    before = kept.policy.optimizer.deviation
    before = before.sigma if not before.each else torch.cat([d.flatten() for d in before.each])
    before = torch.as_tensor(before, dtype=torch.float64).square().mean().sqrt()
    assert asked(kept) == pytest.approx(float(before))
    assert (float(before) == pytest.approx(0.1)) == (adapt == "none")
    assert (became == pytest.approx(0.1)) == (adapt == "none")
    assert asked(ES.load(tmp_path / "es", env=vector_env(Toy), sigma=0.5)) == pytest.approx(0.5)
    model.sigma = 0.3
    assert asked(model) == pytest.approx(0.3)


def test_attributes_are_taken_from_the_next_population_on() -> None:
    model = small(ES, vector_env(Toy)).learn(1)
    model.n_candidates, model.antithetic, model.shaping = 5, False, "utilities"
    model.adapt, model.n_episodes, model.max_episode_steps = "global", 2, 3
    model.learn(1)
    optimizer = model.policy.optimizer
    assert len(model._returns) == 5
    assert (optimizer.shaping, optimizer.adapt) == ("utilities", "global")
    assert optimizer.deviation.sigma != 0.1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("adapt", "separable", "adapt cannot become"),
        ("sigma", -1.0, "sigma must be positive"),
        ("n_candidates", 7, "n_candidates must be at least 2, and even"),
        ("n_episodes", 0, "n_episodes must be a whole number"),
        ("shaping", "rank", "shaping must be one of"),
    ],
)
def test_attributes_that_cannot_work_are_refused(name: str, value, message: str) -> None:
    model = small(ES, vector_env(Toy)).learn(1)
    before = parameters(model)
    setattr(model, name, value)
    with pytest.raises(ConfigurationError, match=message):
        model.learn(1)
    assert same(before, parameters(model))


# ------------------------------------------------------------------------------------- arguments


def test_optimizers_by_name_by_class_and_by_default() -> None:
    model = small(ES, vector_env(Toy))
    assert type(model.policy.optimizer) is EvolutionStrategies
    assert type(model.policy.optimizer.base) is torch.optim.Adam
    kwargs = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.5}}
    base = small(ES, vector_env(Toy), policy_kwargs=kwargs).policy.optimizer.base
    assert type(base) is torch.optim.SGD
    assert base.param_groups[0]["momentum"] == 0.5


REFUSED = {
    *("bfgs", "dfp", "gauss-newton", "lbfgs", "newton", "newton-cg", "sr1"),  # ask for the loss
    *("evolution-strategies", "loss-flow", "mle-guided-search", "natural-gradient"),
    *("ekfac", "kbfgs", "kfac", "muon", "sophia-g"),  # ask for the module
    *("adahessian", "sophia-h"),  # differentiate gradients
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_optimizers_that_need_more_than_gradients_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"optimizer='{name}'") as refused:
        small(ES, vector_env(Toy), optimizer=name)
    assert_the_remedy(str(refused.value))


def assert_the_remedy(message: str) -> None:
    """It names each optimizer that works and no other, and is given once."""
    named = message.split("None or one of ")[1].split(". ")[0].split(", ")
    assert named == sorted(set(names()) - REFUSED)
    assert message.count("None") == 1
    assert "agents.TRPO" in message


def test_an_unknown_optimizer_is_told_of_those_that_work() -> None:
    with pytest.raises(ConfigurationError, match="'addam' is none there is") as refused:
        small(ES, vector_env(Toy), optimizer="addam")
    assert_the_remedy(str(refused.value))


@pytest.mark.parametrize("name", sorted(set(names()) - REFUSED))
def test_any_other_optimizer_takes_its_step(name: str) -> None:
    model = small(ES, vector_env(lambda: Toy(VECTOR, BOX)), optimizer=name)
    before = parameters(model)
    for _ in range(2):  # SOAP's first step only looks
        model.learn(1)
    assert finite(model)
    assert not same(before, parameters(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_candidates": 1}, "n_candidates"),
        ({"n_candidates": 7}, "even"),
        ({"n_candidates": 2.5}, "n_candidates"),
        ({"n_candidates": True}, "n_candidates must be a whole number above 0, got True"),
        ({"n_episodes": True}, "n_episodes must be a whole number above 0, got True"),
        ({"n_episodes": 0}, "n_episodes"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": math.nan}, "sigma"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
        ({"shaping": "rank"}, "shaping"),
        ({"adapt": "always"}, "adapt"),
        ({"optimizer": "addam"}, "addam"),
        ({"use_sde": True}, "use_sde"),
    ],
)
def test_arguments_that_cannot_work_are_named(settings, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        small(ES, vector_env(lambda: Toy(VECTOR, BOX)), **settings)


def test_odd_numbers_of_candidates_without_pairs() -> None:
    assert small(ES, vector_env(Toy), n_candidates=7, antithetic=False).learn(1)._n_updates == 1


# -------------------------------------------------------------------------------------- learning


@pytest.mark.uncounted  # hundreds of the same updates, as below
@pytest.mark.parametrize(
    "actions", [DISCRETE, ACTIONS["multi-discrete"], ACTIONS["multi-binary"]], ids=str
)
def test_the_identity_is_learned(actions) -> None:
    settings = {"n_candidates": 16, "sigma": 0.2, "learning_rate": 0.1}
    model = small(ES, vector_env(lambda: Identity(actions), 8), **settings).learn(60 * 16 * 20)
    judge = vector_env(lambda: Monitor(Identity(actions)))
    assert evaluate_policy(model, judge, n_eval_episodes=10)[0] > 0.9 * 20  # by chance: 6.7 to 10


@pytest.mark.slow
def test_cart_pole_is_solved() -> None:
    env = make("CartPole-v1", num_envs=8, seed=0, backend="gymnasium")
    settings = {"n_candidates": 32, "sigma": 0.1, "learning_rate": 0.05}
    model = ES("MlpPolicy", env, seed=0, device="cpu", **settings).learn(100_000)
    judge = make("CartPole-v1", num_envs=1, seed=1000, backend="gymnasium")
    assert evaluate_policy(model, judge, n_eval_episodes=20)[0] >= 475
