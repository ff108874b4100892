"""Evolution strategies."""

import functools
import math
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv

from agents.arguments import check_not_negative, check_positive, check_whole
from agents.candidates import candidate_actor
from agents.learning import learning
from agents.named_optimizers import fed_with_directions
from agents.on_policy import OnPolicy
from agents.over_ranks import stay_alike
from agents.parameter_watch import SearchWatch
from agents.population import evaluate
from agents.search_settings import take_settings
from npg import ranks
from npg.errors import ConfigurationError
from npg.optim import EvolutionStrategies


class ES(OnPolicy):
    """Evolution strategies: whole episodes played by perturbed policies, and no backpropagation.

    Every environment plays an episode for one candidate θ + σ ε, and then for the next. When all
    have played, θ goes along Σ u ε, u the candidates' shaped returns; see
    :class:`npg.optim.EvolutionStrategies`. Only what the actor reads is perturbed: the value
    network stays as it was made, and so does the log standard deviation of continuous actions.
    Evaluate with ``deterministic=True``, as ``evaluate_policy`` does.

    Environments that have no candidate left idle until the last has played, so ``n_candidates``
    times ``n_episodes`` should be a multiple of their number, and several times it where episodes
    differ in length; ``rollout/idle_fraction`` tells. A training that was stopped in the middle of
    a population begins the next one anew. The two candidates θ ± σ ε of a pair meet different
    episodes: an environment need not repeat one. The statistics of a ``VecNormalize`` move while
    candidates are evaluated, those of its rewards do not matter: returns are of its raw ones.

    The attributes ``n_candidates`` to ``max_episode_steps`` may be changed at any time, and by
    ``load``: the next population takes them. A new ``sigma`` replaces what adaptation made of the
    last one; ``adapt`` cannot become or cease to be "separable". Others are those of the start.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a policy class.
        env: Gymnasium id, environment, or vector of environments; ``envs.make`` makes fast ones.
            Its episodes must end.
        learning_rate: Of the optimizer; a number or a schedule of the remaining progress. With
            Adam about how far each parameter goes in one update.
        n_candidates: Per update, an even number where ``antithetic``. More take noise out of the
            update; the memory is that of so many copies of the actor.
        sigma: σ, in the units of the parameters. Low finds little difference between candidates;
            high looks at policies that are far away.
        n_episodes: Per candidate, which is judged by their mean. More candidates are usually
            the better use of episodes.
        shaping: "ranks" from −1/2 to 1/2, which no outlier and no scale disturbs; "utilities" of
            natural evolution strategies, which look at the best; "none" the return itself.
        antithetic: Whether candidates come in pairs θ ± σ ε.
        adapt: "none" keeps σ; "global" adapts one for all parameters by its natural gradient,
            "separable" one for each.
        deterministic: Whether candidates act by their distribution's mode; False draws actions,
            as other agents do, which smooths returns that single actions decide.
        max_episode_steps: Cuts episodes after so many steps and takes their rewards until then.
            The environment waits until all can be reset: a TimeLimit wrapper is faster. None takes
            an episode of 1,000,000 steps for an error.
        use_sde: Refused: parameters are the noise here.
        stats_window_size: Episodes in the logged means.
        tensorboard_log: Directory of TensorBoard logs.
        policy_kwargs: Arguments of the policy class.
        verbose: 0 silent, 1 a table per update.
        seed: Seeds everything.
        device: "cpu", "cuda", "auto".
        _init_setup_model: Whether to build the networks at once.
        optimizer: Name of an optimizer of ``npg.optim`` that takes groups of parameters and
            gradients alone, which is what an update is to it ("muon" divides parameters itself), in
            place of the policy's own choice, Adam unless ``policy_kwargs`` has an
            ``optimizer_class``.

    Raises:
        ConfigurationError: If an argument cannot work; the message says which and why.

    Reference:
        Salimans et al., "Evolution strategies as a scalable alternative to reinforcement
        learning", 2017; Wierstra et al., "Natural evolution strategies", 2014.
    """

    _mark = "n_candidates"

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 0.02,
        n_candidates: int = 64,
        sigma: float = 0.05,
        n_episodes: int = 1,
        shaping: Literal["ranks", "utilities", "none"] = "ranks",
        antithetic: bool = True,
        adapt: Literal["none", "global", "separable"] = "none",
        deterministic: bool = True,
        max_episode_steps: int | None = None,
        use_sde: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        optimizer: str | None = None,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=1,  # the rollout buffer of the base class stays empty
            gamma=1.0,
            gae_lambda=1.0,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=math.inf,
            use_sde=use_sde,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
        )
        self.n_candidates = n_candidates
        self.sigma = self._sigma_taken = sigma  # load() and the user may give another
        self.n_episodes = n_episodes
        self.shaping = shaping
        self.antithetic = antithetic
        self.adapt = adapt
        self.deterministic = deterministic
        self.max_episode_steps = max_episode_steps
        self.optimizer = optimizer
        if _init_setup_model:
            self._setup_model()

    def _check_settings(self) -> None:
        super()._check_settings()
        check_whole(n_candidates=self.n_candidates, n_episodes=self.n_episodes)
        check_positive(sigma=self.sigma)
        if self.n_candidates < 2 or (self.antithetic and self.n_candidates % 2):
            raise ConfigurationError(
                "n_candidates must be at least 2, and even where antithetic=True, got "
                f"{self.n_candidates}"
            )
        if self.n_candidates < ranks.count():
            raise ConfigurationError(
                f"n_candidates must be at least the number of ranks, {ranks.count()}, got "
                f"{self.n_candidates}: every rank evaluates its share of them"
            )
        if self.max_episode_steps is not None:
            check_whole(max_episode_steps=self.max_episode_steps)
        if self.use_sde:
            raise ConfigurationError(
                "use_sde=True: State-Dependent Exploration is noise in the actions, and evolution "
                "strategies explore by noise in the parameters: leave use_sde=False"
            )
        if not callable(self.learning_rate):
            check_not_negative(learning_rate=self.learning_rate)

    def _build_optimizers(self) -> None:
        policy, log_std = self.policy, getattr(self.policy, "log_std", None)
        if self.optimizer is None:
            base = functools.partial(policy.optimizer_class, **policy.optimizer_kwargs)
        else:
            base = functools.partial(fed_with_directions, self.optimizer)
        policy.optimizer = EvolutionStrategies(
            [p for p in self.parts.actor if p is not log_std],
            self.lr_schedule(1.0),
            candidates=self.n_candidates,
            sigma=self.sigma,
            shaping=self.shaping,
            antithetic=self.antithetic,
            adapt=self.adapt,
            base=base,
            seed=int(torch.randint(2**31, ())),
        )

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Evaluates a population; see :func:`agents.population.evaluate`.

        Args:
            env: The training environments.
            callback: Called at every step.
            rollout_buffer: Stays empty.
            n_rollout_steps: Ignored: a population takes as many as its episodes have.

        Returns:
            False if the callback stopped the training.
        """
        policy, optimizer = self.policy, self.policy.optimizer
        stay_alike(self)
        policy.set_training_mode(False)
        callback.on_rollout_start()
        take_settings(self)
        parameters = optimizer.tensors()
        actor = candidate_actor(
            policy, self.observation_space, env.num_envs, parameters, self.deterministic
        )
        self._watch = SearchWatch(optimizer)
        begun, candidates = self.num_timesteps, list(optimizer.ask())
        own = slice(ranks.index(), None, ranks.count())
        returns = evaluate(self, env, callback, actor, [*candidates[own], self._watch.start])
        taken = self.num_timesteps - begun
        self.num_timesteps = begun + round(ranks.average(taken) * ranks.count())
        if not self._agreed(returns is not None):
            return False
        of_all = torch.zeros(len(candidates), dtype=torch.float64)
        of_all[own] = torch.as_tensor(returns, dtype=torch.float64)
        self._returns = ranks.summed(of_all).numpy()
        return True

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """Prepares training; ranks draw the same candidates."""
        generator = self.policy.optimizer.generator
        state = generator.get_state()
        ranks.share_([state])
        generator.set_state(state)
        return super()._setup_learn(*args, **kwargs)

    def train(self) -> None:
        """Takes one step from the candidates' returns.

        Those that are not finite are dropped, and counted in ``train/dropped``. A population in
        which a callback changed the policy counts for nothing, and the next begins anew.
        """
        optimizer = self.policy.optimizer
        if self._watch.changed(optimizer):
            self._skip("a callback changed the policy while candidates of the old one played")
            return
        self._update_learning_rate(optimizer)
        self._n_updates += 1
        returns = self._returns
        report = optimizer.tell(torch.from_numpy(-returns))
        if not report.accepted:
            self._skip(report.reason)
        finite = returns[np.isfinite(returns)]
        record = self.logger.record
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        if len(finite):
            record("train/return_mean", finite.mean())
            record("train/return_std", finite.std())
            record("train/return_best", finite.max())
        record("train/dropped", report.dropped)
        record("train/sigma", report.sigma)
        record("train/gradient_norm", report.gradient_norm)

    learn = learning("ES", updates=1)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_returns", "_watch"]
