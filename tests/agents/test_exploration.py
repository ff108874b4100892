"""gSDE through the NumPy twin: Stable-Baselines3's rollouts, draw for draw."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from agents import TRPO
from agents.acting import mirror_of, mirrored_layers
from agents.exploration import reset_noise
from tests.agents.helpers import BOX, DICTIONARY, MATRIX, VECTOR, Toy, small, vector_env
from tests.agents.rollouts import COLUMNS, Silent, collect, start
from tests.pairs import pairs

VARIANTS = {
    "plain": {},
    "one deviation a feature": {"full_std": False},
    "expln": {"use_expln": True, "log_std_init": 0.5},
    "squashed": {"squash_output": True, "log_std_init": -1.0},
    "no hidden layer": {"net_arch": []},
    "relu": {"net_arch": {"pi": [5, 17, 6], "vf": [4]}, "activation_fn": nn.ReLU},
}


def model_of(observations=VECTOR, actions=BOX, count: int = 2, freq: int = 5, **policy_kwargs):
    env = vector_env(lambda: Toy(observations, actions), count)
    policy = "MultiInputPolicy" if isinstance(observations, spaces.Dict) else "MlpPolicy"
    settings = {"use_sde": True, "sde_sample_freq": freq}
    kwargs = {"ortho_init": False, **policy_kwargs}
    model = small(TRPO, env, policy, policy_kwargs=kwargs, **settings)
    with torch.no_grad():  # every deviation is its own
        model.policy.log_std.add_(0.5 * torch.randn_like(model.policy.log_std))
    return model


def both(model, callback: type[BaseCallback] = Silent) -> list[dict[str, np.ndarray]]:
    """The columns of our rollout, and of the policy's own forward in the same loop."""
    rollouts = []
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    for mirrored in (True, False):
        model.policy.load_state_dict(before)
        model._setup_learn(0)
        start(model, model.env)
        torch.manual_seed(3)
        if not mirrored:  # a patched method sends every step through SB3's forward
            model.policy.forward = model.policy.forward
        assert (mirrored_layers(model.policy, model.observation_space) is not None) == mirrored
        assert collect(model, callback())
        model.policy.__dict__.pop("forward", None)
        buffer = model.rollout_buffer
        rollouts.append(
            {name: getattr(buffer, name).copy() for name in (*COLUMNS, "actions", "rewards")}
            | {"next draw": torch.rand(3).numpy()}
        )
    return rollouts


def assert_same(rollouts: list[dict[str, np.ndarray]]) -> None:
    ours, theirs = rollouts
    for name, column in theirs.items():
        np.testing.assert_allclose(ours[name], column, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_rollouts_are_those_of_the_policy_itself(variant: str, count: int) -> None:
    assert_same(both(model_of(count=count, **VARIANTS[variant])))


@pytest.mark.parametrize("freq", [-1, 1, 64])
@pytest.mark.parametrize("observations", [VECTOR, DICTIONARY], ids=["vector", "dict"])
def test_matrices_are_drawn_when_sb3_draws_them(observations, freq: int) -> None:
    assert_same(both(model_of(observations, MATRIX, freq=freq)))


@pytest.mark.parametrize("count", [1, 2])
def test_sb3s_own_loop_draws_the_same_actions(count: int) -> None:
    model = model_of(count=count)
    ours, _ = both(model)
    model._setup_learn(0)
    start(model, model.env)
    torch.manual_seed(3)
    callback = Silent()
    callback.init_callback(model)
    seen = []
    model.rollout_buffer.add = lambda _o, actions, *rest: seen.append(actions)
    model.rollout_buffer.compute_returns_and_advantage = lambda **_: None
    OnPolicyAlgorithm.collect_rollouts(model, model.env, callback, model.rollout_buffer, 64)
    np.testing.assert_allclose(ours["actions"], np.stack(seen), rtol=1e-5, atol=1e-6)


class Interfering(BaseCallback):
    """Moves the mean, the deviations and the matrices, each in the middle of a rollout."""

    def _on_step(self) -> bool:
        policy = self.model.policy
        with torch.no_grad():
            if self.n_calls == 12:
                policy.action_net.bias.add_(3.0)
            if self.n_calls == 23:  # what was drawn from the old deviations stays until step 25
                policy.log_std.add_(1.0)
            if self.n_calls == 41:
                policy.reset_noise(self.model.n_envs)
            if self.n_calls == 52:
                policy.reset_noise(1)
        return True


@pytest.mark.parametrize("count", [1, 2])
def test_what_callbacks_change_in_the_middle_is_followed(count: int) -> None:
    rollouts = both(model_of(count=count), Interfering)
    assert_same(rollouts)
    actions = rollouts[0]["actions"]
    assert actions[12:23].mean() > actions[:12].mean() + 1
    assert actions[25:41].std() > 1.5 * actions[12:23].std()


def replace(distribution: StateDependentNoiseDistribution, name: str) -> None:
    setattr(distribution, name, 3 * getattr(distribution, name))


CHANGES = {
    "replaced": replace,
    "replaced in inference mode": torch.inference_mode()(replace),
    "written to": lambda distribution, name: getattr(distribution, name).zero_(),
}
ACTING = {1: "exploration_mat", 2: "exploration_matrices"}  # of so many environments


@pytest.mark.parametrize(*pairs(change=tuple(CHANGES), name=ACTING.values(), count=tuple(ACTING)))
def test_matrices_that_callbacks_change_act_from_then_on(change, name: str, count: int) -> None:
    class Changing(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 20:
                CHANGES[change](self.model.policy.action_dist, name)
            return True

    model = model_of(count=count, freq=-1)
    changed, undisturbed = both(model, Changing), both(model)
    assert_same(changed)
    apart = changed[0]["actions"] != undisturbed[0]["actions"]
    assert not apart[:20].any()
    assert apart[20:].all() == apart[20:].any() == (name == ACTING[count])


@pytest.mark.parametrize("policy_kwargs", [{}, {"full_std": False}, {"use_expln": True}])
def test_noise_is_reset_to_sb3s_numbers(policy_kwargs) -> None:
    policy = model_of(**policy_kwargs).policy
    drawn = []
    for reset in (lambda: reset_noise(policy, 3), lambda: policy.reset_noise(3)):
        torch.manual_seed(0)
        reset()
        kept = policy.action_dist
        weights = kept.weights_dist.loc, kept.weights_dist.scale
        drawn.append([kept.exploration_mat, kept.exploration_matrices, *weights, torch.rand(2)])
    assert not any(tensor.requires_grad for tensor in drawn[0])
    torch.testing.assert_close(*drawn, rtol=0, atol=0)


def test_deviations_that_are_no_numbers_are_refused_before_a_step() -> None:
    model = model_of()
    model.policy.log_std.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="parameter scale"):
        collect(model)
    assert not model.num_timesteps


def overridden(name: str, method) -> type[ActorCriticPolicy]:
    return type("Custom", (ActorCriticPolicy,), {name: method})


class OtherNoise(StateDependentNoiseDistribution):
    def get_noise(self, latent_sde: torch.Tensor) -> torch.Tensor:
        return 2 * super().get_noise(latent_sde)


def test_other_noise_is_the_policys_own() -> None:
    def twice(self, n_envs: int = 1) -> None:
        ActorCriticPolicy.reset_noise(self, n_envs)
        self.action_dist.exploration_matrices = 2 * self.action_dist.exploration_matrices

    env = vector_env(lambda: Toy(VECTOR, BOX))
    model = small(TRPO, env, overridden("reset_noise", twice), use_sde=True)
    assert mirrored_layers(model.policy, VECTOR) is None
    model = model_of()
    assert mirrored_layers(model.policy, VECTOR) is not None
    model.policy.action_dist.__class__ = OtherNoise
    assert mirrored_layers(model.policy, VECTOR) is None


@pytest.mark.parametrize("method", ["get_noise", "sample_weights", "get_std", "bijector.forward"])
def test_patched_noise_is_the_policys_own(method: str) -> None:
    model = model_of(squash_output=True)
    assert mirrored_layers(model.policy, VECTOR) is not None
    *path, name = method.split(".")
    owner = getattr(model.policy.action_dist, path[0]) if path else model.policy.action_dist
    original, calls = getattr(owner, name), []
    setattr(owner, name, lambda *args, **kwargs: calls.append(name) or original(*args, **kwargs))
    assert mirrored_layers(model.policy, VECTOR) is None
    collect(model, steps=20)
    assert len(calls) >= 5  # draws, and more steps


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("count", [1, 4])
def test_parameters_are_those_of_the_last_reading(count: int, use_sde: bool) -> None:
    model = small(TRPO, vector_env(lambda: Toy(VECTOR, BOX), count), use_sde=use_sde)
    layers = mirrored_layers(model.policy, VECTOR)
    mirror = mirror_of(model.policy, layers, count, 1)
    observations = np.ones((count, 3), np.float32)
    before = mirror.sample(0, observations)
    for parameter in model.policy.action_net.parameters():
        parameter.data += 1.0
    if use_sde:  # the same matrices, which are taken anew
        with torch.no_grad():
            model.policy.action_dist.exploration_mat.add_(0.0)
    np.testing.assert_array_equal(mirror.sample(0, observations), before)
    mirror.read()
    assert (mirror.sample(0, observations) != before).all()
