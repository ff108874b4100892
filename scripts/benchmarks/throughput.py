"""Whole training, in environment steps per second, against Stable-Baselines3's agents."""

from statistics import median

import sb3_contrib
import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from agents import A2C, ACKTR, PPO, TRPO
from benchmarks.report import Row, interleaved, median_ratio, show
from envs import make

# TRPO: (environment, environments, steps per environment and update, backend, critic, target)
CASES = [
    ("CartPole-v1", 1, 2048, "gymnasium", "adam", ">= 8"),
    ("CartPole-v1", 1, 2048, "gymnasium", "gauss-newton", ">= 10"),
    ("CartPole-v1", 8, 256, "gymnasium", "gauss-newton", ">= 5"),
    ("CartPole-v1", 8, 2048, "gymnasium", "gauss-newton", ">= 5"),
    ("HalfCheetah-v5", 1, 2048, "gymnasium", "gauss-newton", ">= 5"),
    ("HalfCheetah-v5", 8, 256, "gymnasium", "gauss-newton", ">= 2.5"),
    ("HalfCheetah-v5", 8, 2048, "gymnasium", "gauss-newton", ">= 2.5"),
    ("HalfCheetah-v5", 8, 256, "envpool", "gauss-newton", ">= 3.5"),
    ("HalfCheetah-v5", 8, 2048, "envpool", "gauss-newton", ">= 3.5"),
    # The same critic on both sides: what the rest of the update is worth.
    ("CartPole-v1", 8, 256, "gymnasium", "adam", ""),
    ("HalfCheetah-v5", 1, 2048, "gymnasium", "adam", ""),
    ("HalfCheetah-v5", 8, 256, "gymnasium", "adam", ""),
    ("HalfCheetah-v5", 8, 256, "envpool", "adam", ""),
]


# A2C: (environment, environments, backend, target), 5 steps per environment and update.
A2C_CASES = [
    ("CartPole-v1", 8, "gymnasium", ">= 2.5"),
    ("CartPole-v1", 1, "gymnasium", ">= 2.5"),
    ("HalfCheetah-v5", 8, "gymnasium", ">= 2.5"),
    ("HalfCheetah-v5", 1, "gymnasium", ""),
    ("HalfCheetah-v5", 8, "envpool", ">= 2.5"),
]
A2C_UPDATES = 100  # of a few milliseconds each

# ACKTR against A2C at the same rollouts: (environment, environments, steps per environment).
ACKTR_CASES = [("CartPole-v1", 8, 20), ("HalfCheetah-v5", 8, 20)]

# PPO with rollouts of 2048: (environment, environments, steps per environment, backend).
PPO_CASES = [
    ("CartPole-v1", 1, 2048, "gymnasium"),
    ("CartPole-v1", 8, 256, "gymnasium"),
    ("HalfCheetah-v5", 1, 2048, "gymnasium"),
    ("HalfCheetah-v5", 8, 256, "gymnasium"),
    ("HalfCheetah-v5", 8, 256, "envpool"),
]


def run_ppo(rounds: int, command: str) -> None:
    """Trains PPO of both libraries for equal numbers of steps, in turn, with equal settings."""
    rows = []
    for env_id, num_envs, n_steps, backend in PPO_CASES:
        settings = {"n_steps": n_steps, "seed": 0, "device": "cpu"}
        env = make(env_id, num_envs=num_envs, seed=0, backend=backend)
        ours = PPO("MlpPolicy", env, **settings)
        peer_env = make_vec_env(env_id, num_envs, seed=0)
        theirs = stable_baselines3.PPO("MlpPolicy", peer_env, **settings)
        what = f"{env_id}, {num_envs} × {n_steps}, {backend}"
        steps = num_envs * n_steps
        rows.append(_compare(ours, theirs, steps, rounds, what, "stable-baselines3", ">= 2"))
    show("PPO's training throughput", rows, command)


def run(rounds: int, command: str) -> None:
    """Trains both libraries for equal numbers of steps, in turn, with equal settings."""
    rows = []
    for env_id, num_envs, n_steps, backend, critic, target in CASES:
        settings = {"n_steps": n_steps, "seed": 0}
        ours = TRPO(
            "MlpPolicy",
            make(env_id, num_envs=num_envs, seed=0, backend=backend),
            critic=critic,
            kl_reduction="per-dimension",
            **settings,
        )
        theirs = sb3_contrib.TRPO("MlpPolicy", make_vec_env(env_id, num_envs, seed=0), **settings)
        what = f"{env_id}, {num_envs} × {n_steps}, {backend}, critic {critic}"
        steps = num_envs * n_steps
        rows.append(_compare(ours, theirs, steps, rounds, what, "sb3-contrib", target))
    for env_id, num_envs, backend, target in A2C_CASES:
        settings = {"seed": 0, "device": "cpu"}
        env = make(env_id, num_envs=num_envs, seed=0, backend=backend)
        peer_env = make_vec_env(env_id, num_envs, seed=0)
        ours = A2C("MlpPolicy", env, **settings)
        theirs = stable_baselines3.A2C("MlpPolicy", peer_env, **settings)
        steps = num_envs * ours.n_steps * A2C_UPDATES
        what = f"A2C, {env_id}, {num_envs} × {ours.n_steps}, {backend}"
        rows.append(_compare(ours, theirs, steps, rounds, what, "stable-baselines3", target))
    for env_id, num_envs, n_steps in ACKTR_CASES:
        settings = {"n_steps": n_steps, "seed": 0, "device": "cpu"}
        for agent, target in ((A2C, ">= 0.6"), (stable_baselines3.A2C, ">= 1.5")):
            env = make(env_id, num_envs=num_envs, seed=0, backend="gymnasium")
            ours = ACKTR("MlpPolicy", env, **settings)
            if agent is A2C:
                peer_env, peer = make(env_id, num_envs=num_envs, seed=0, backend="gymnasium"), "npg"
            else:
                peer_env, peer = make_vec_env(env_id, num_envs, seed=0), "stable-baselines3"
            theirs = agent("MlpPolicy", peer_env, **settings)
            steps = num_envs * n_steps * A2C_UPDATES
            what = f"ACKTR, {env_id}, {num_envs} × {n_steps}, against A2C"
            rows.append(_compare(ours, theirs, steps, rounds, what, f"{peer}'s A2C", target))
    show("Training throughput", rows, command)


def _compare(
    ours: BaseAlgorithm,
    theirs: BaseAlgorithm,
    steps: int,
    rounds: int,
    what: str,
    peer: str,
    target: str,
) -> Row:
    """Trains each for so many steps in every round, and closes their environments."""

    def update(model: BaseAlgorithm) -> None:
        model.learn(steps, reset_num_timesteps=False)

    their_times, our_times = interleaved([lambda: update(theirs), lambda: update(ours)], rounds)
    ours.get_env().close()
    theirs.get_env().close()
    return Row(
        what,
        f"{steps / median(our_times):,.0f} steps/s",
        f"{peer} {steps / median(their_times):,.0f} steps/s",
        median_ratio(their_times, our_times),
        target,
    )
