"""explain.py on small runs, and integrated gradients where they are known."""

import csv
import re
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from explain import main
from explanation.attribution import explain
from explanation.episodes import Coordinates, Episodes, play
from gymnasium import spaces
from PIL import Image
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn
from train import main as train

from agents import A2C, NPG
from npg.errors import ConfigurationError

captum = pytest.importorskip("captum")
LINEAR = {"net_arch": [], "activation_fn": nn.Identity}


class Wandering(gym.Env):
    """Random observations, ten steps an episode."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:  # None would draw a new seed from the machine's entropy
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 10, False, {}


def box(*shape):
    return spaces.Box(-1, 1, shape, np.float32)


def played(model, episodes=2):
    env = model.get_env()
    coordinates = Coordinates(env.observation_space)
    return play(model, env, coordinates, episodes), coordinates


def agent(observation_space, action_space, policy="MlpPolicy", **options):
    env = DummyVecEnv([lambda: Wandering(observation_space, action_space)])
    return NPG(policy, env, n_steps=16, batch_size=16, seed=0, **options)


# ------------------------------------------------------------------------------------- attribution


class TestClosedForms:
    @pytest.mark.parametrize("baseline", ["mean", "zeros"])
    def test_a_linear_policy(self, baseline):
        """a = W x + c: the part of coordinate d is W_d (x_d − b_d)."""
        model = agent(box(3), box(2), policy_kwargs=LINEAR)
        weight = torch.tensor([[1.0, -2.0, 0.0], [0.5, 0.0, 3.0]])
        with torch.no_grad():
            model.policy.action_net.weight.copy_(weight)
        episodes, coordinates = played(model)
        found = explain(model.policy, episodes, coordinates, baseline)
        x = episodes.observations
        start = x.mean(0) if baseline == "mean" else np.zeros(3)
        expected = weight.numpy()[None] * (x - start)[:, None]
        np.testing.assert_allclose(found.attributions, expected, atol=1e-6)
        np.testing.assert_allclose(found.decisions.clip(-1, 1), episodes.actions, atol=1e-6)
        assert found.names == ["a0", "a1"]
        assert list(found.order()) == list(np.argsort(-np.abs(expected).mean(0).sum(0)))

    @pytest.mark.parametrize("action_space", [spaces.Discrete(2), spaces.MultiBinary(1)])
    def test_two_linear_logits(self, action_space):
        """log π is a function of one projection u = wᵀx: the path is straight in u, and d has the
        part w_d (x_d − b_d) / wᵀ(x − b) of the change."""
        model = agent(box(3), action_space, policy_kwargs=LINEAR)
        with torch.no_grad():
            model.policy.action_net.weight.normal_()
        weight = model.policy.action_net.weight.detach().numpy()
        w = weight[1] - weight[0] if len(weight) == 2 else weight[0]
        c = model.policy.action_net.bias.detach().numpy()
        c = c[1] - c[0] if len(c) == 2 else c[0]
        episodes, coordinates = played(model)
        found = explain(model.policy, episodes, coordinates)
        x, sign = episodes.observations, 2 * episodes.actions.reshape(-1) - 1
        moved = x - x.mean(0)

        def log_probability(inputs):
            return -np.logaddexp(0, -sign * (inputs @ w + c))

        change = log_probability(x) - log_probability(np.broadcast_to(x.mean(0), x.shape))
        expected = w * moved / (moved @ w)[:, None] * change[:, None]
        np.testing.assert_allclose(found.attributions[:, 0], expected, atol=1e-5)
        np.testing.assert_allclose(found.changes[:, 0], change, atol=1e-6)

    def test_a_network_against_a_riemann_sum(self):
        """The definition, by 4,000 midpoints in float64 of the same network."""
        model = agent(box(3), box(2))
        for parameter in model.policy.parameters():
            parameter.data.mul_(3)
        episodes, coordinates = played(model, 1)
        found = explain(model.policy, episodes, coordinates)
        network = nn.Sequential(
            *model.policy.mlp_extractor.policy_net, model.policy.action_net
        ).double()
        x = torch.tensor(episodes.observations, dtype=torch.float64)
        start = x.mean(0)
        at = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
        path = (start + at[:, None, None] * (x - start)).requires_grad_()
        for i in range(2):
            (slopes,) = torch.autograd.grad(network(path)[..., i].sum(), path)
            expected = slopes.mean(0) * (x - start)
            np.testing.assert_allclose(found.attributions[:, i], expected, atol=2e-5)

    def test_few_nodes_leave_a_gap(self):
        model = agent(box(3), box(2))
        for parameter in model.policy.parameters():
            parameter.data.mul_(5)
        episodes, coordinates = played(model)
        gaps = [
            explain(model.policy, episodes, coordinates, steps=steps).relative_gap()
            for steps in (2, 64)
        ]
        assert gaps[0] > 0.01
        assert gaps[1] < 1e-3


class TestSpaces:
    @pytest.mark.parametrize(
        ("action_space", "decisions"),
        [
            (spaces.Discrete(3), 1),
            (spaces.MultiDiscrete([2, 3]), 1),
            (spaces.MultiBinary(3), 1),
            (box(4), 4),
        ],
    )
    def test_actions(self, action_space, decisions):
        model = agent(box(3), action_space)
        episodes, coordinates = played(model)
        found = explain(model.policy, episodes, coordinates)
        assert found.attributions.shape == (20, decisions, 3)
        assert found.relative_gap() < 1e-3

    def test_state_dependent_exploration(self):
        model = agent(box(3), box(2), use_sde=True)
        episodes, coordinates = played(model)
        found = explain(model.policy, episodes, coordinates)
        np.testing.assert_allclose(found.decisions, episodes.actions, atol=1e-6)

    def test_a_dictionary_has_the_names_of_its_keys(self):
        space = spaces.Dict({"arm": box(2), "goal": box(1, 2)})
        model = agent(space, box(1), "MultiInputPolicy", policy_kwargs=LINEAR)
        episodes, coordinates = played(model)
        assert coordinates.names == ["arm.0", "arm.1", "goal.0", "goal.1"]
        found = explain(model.policy, episodes, coordinates)
        moved = episodes.observations - episodes.observations.mean(0)
        expected = model.policy.action_net.weight.detach().numpy() * moved
        np.testing.assert_allclose(found.attributions[:, 0], expected, atol=1e-6)

    def test_matrices_are_flat(self):
        model = agent(box(2, 2), box(1))
        episodes, coordinates = played(model)
        assert explain(model.policy, episodes, coordinates).attributions.shape == (20, 1, 4)

    @pytest.mark.parametrize(
        "space",
        [
            spaces.Box(0, 255, (36, 36, 3), np.uint8),
            spaces.Discrete(4),
            spaces.Dict({"camera": spaces.Box(0, 255, (36, 36, 3), np.uint8), "arm": box(2)}),
        ],
    )
    def test_what_has_no_coordinates(self, space):
        with pytest.raises(ConfigurationError, match="no coordinates"):
            Coordinates(space)

    def test_names_must_be_as_many(self):
        with pytest.raises(ConfigurationError, match="3 coordinates, and 2 names"):
            Coordinates(box(3), ["x", "y"])

    def test_parameters_and_gradients_stay(self):
        model = agent(box(3), box(2))
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        episodes, coordinates = played(model)
        explain(model.policy, episodes, coordinates)
        assert all(torch.equal(v, before[n]) for n, v in model.policy.state_dict().items())
        assert all(p.grad is None for p in model.policy.parameters())


class TestPlaying:
    def test_episodes_follow_each_other(self):
        episodes, _ = played(agent(box(3), box(2)), 3)
        assert list(np.bincount(episodes.episode)) == [10, 10, 10]
        assert episodes.first() == slice(0, 10)
        assert isinstance(episodes, Episodes)

    def test_a_length_breaks_them_off(self):
        model = agent(box(3), box(2))
        env = model.get_env()
        episodes = play(model, env, Coordinates(env.observation_space), 2, 4)
        assert list(np.bincount(episodes.episode)) == [4, 4]

    def test_numbers_that_are_none(self):
        model = agent(box(3), box(2))
        env = model.get_env()
        env.envs[0].reset = lambda **_: (np.full(3, np.nan, np.float32), {})
        with pytest.raises(ValueError, match="step 0 is not finite"):
            play(model, env, Coordinates(env.observation_space), 1)

    def test_observations_are_those_the_policy_saw(self):
        """What `predict` makes of them is what was done."""
        model = A2C("MlpPolicy", "Pendulum-v1", seed=0)
        episodes, _ = played(model, 1)
        assert len(episodes.rewards) == 200
        actions = model.predict(episodes.observations, deterministic=True)[0]
        np.testing.assert_allclose(actions, episodes.actions, atol=1e-6)


# ---------------------------------------------------------------------------------------- program


@pytest.mark.parametrize("kind", ["trpo", "npg", "a2c", "acktr"])
def test_every_agent_that_can_be_trained(kind, tmp_path, capsys):
    words = f"{kind} --env Pendulum-v1 --total-timesteps 64 --n-steps 32 --num-envs 2"
    words += f" --normalize-obs --eval-episodes 1 --no-progress-bar --track-dir {tmp_path}"
    assert train(words.split()) == 0
    run = tmp_path / f"{kind}_Pendulum-v1_1"
    capsys.readouterr()
    names = ["--names", "cosine", "sine", "angular velocity"]
    assert main([str(run), "--length", "30", "--seed", "1", *names]) == 0
    output = capsys.readouterr().out
    assert re.search(r"largest gap [\d.e-]+, ([\d.e-]+) of", output)
    assert "angular velocity" in output
    with np.load(run / "explanation.npz") as stored:
        assert stored["attributions"].shape == (30, 1, 3)
        parts, whole = stored["attributions"].sum(2), stored["changes"]
        np.testing.assert_allclose(parts, whole, atol=1e-5)
        assert list(stored["coordinate_names"]) == ["cosine", "sine", "angular velocity"]
    with open(run / "explanation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, abs=1e-5)
    shares = [float(row["mean_abs"]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    with Image.open(run / "explanation.png") as image:
        assert image.width > 1000


def test_a_seed_fixes_the_episode(finished_run, tmp_path):
    found = []
    for name in ("a.png", "b.png"):
        assert main([str(finished_run), "--seed", "5", "--output", str(tmp_path / name)]) == 0
        with np.load((tmp_path / name).with_suffix(".npz")) as stored:
            found.append({key: stored[key] for key in stored.files})
    for key in found[0]:
        np.testing.assert_array_equal(found[0][key], found[1][key])


def test_the_normaliser_of_the_run_is_used(finished_run, tmp_path):
    output = tmp_path / "normalised.png"
    assert main([str(finished_run), "--output", str(output), "--baseline", "zeros"]) == 0
    with np.load(output.with_suffix(".npz")) as stored:
        assert np.abs(stored["observations"]).max() > 0.3  # CartPole starts within 0.05
        assert not stored["baseline"].any()


def test_one_action_is_drawn_with_its_sign(tmp_path, finished_run):
    output = tmp_path / "one.png"
    assert main([str(finished_run), "--action", "0", "--top", "2", "--output", str(output)]) == 0
    assert output.is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--action", "1"], "action must be in [0, 0]"),
        (["--names", "x"], "4 coordinates, and 1 names"),
        (["--action-names", "left", "right"], "1 decisions, and 2 names"),
        (["--output", "picture.jpg"], "end in .png"),
        (["--output", "nowhere/picture.png"], "no directory nowhere"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--episodes", "0"], "episodes must be at least 1"),
    ],
)
def test_errors(finished_run, words, says, capsys):
    before = sorted(finished_run.iterdir())
    assert main([str(finished_run), *words]) == 2
    assert says in capsys.readouterr().err
    assert sorted(finished_run.iterdir()) == before


def test_what_is_no_run(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "not the directory of a run" in capsys.readouterr().err


def test_without_captum_it_names_the_extra(finished_run, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    assert main([str(finished_run), "--output", str(tmp_path / "none.png")]) == 2
    assert "pip install .[explain]" in capsys.readouterr().err


def test_options_are_documented(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--output", "--steps", "--baseline", "--episodes", "--seed", "--names"):
        assert flag in text
