"""An actor-critic whose steps are those of a gradient optimizer, any of ``npg.optim``."""

from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv

from agents.actor_critic import ActorCritic
from agents.losses import Objective
from agents.named_optimizers import check_name, fed_with_gradients, protocol_of
from agents.plain_actor_critic import Losses, PlainActorCritic, plain_actor_critic
from agents.plain_steps import PlainStep, plain_step
from agents.rollout import Batch
from npg import ranks
from npg.errors import ConfigurationError


class FirstOrder(ActorCritic):
    """Base of the agents that have a choice of optimizer.

    Where the policy is plain its gradients are written by hand, and RMSprop's and Adam's steps are
    taken past torch's bookkeeping. A subclass documents the arguments.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        *,
        optimizer: str | None,
        **base: Any,
    ) -> None:
        super().__init__(policy, env, **base)
        self.optimizer = optimizer

    def _check_settings(self) -> None:
        super()._check_settings()
        check_name(self.optimizer)

    def _build_optimizers(self) -> None:
        self._by_hand: PlainActorCritic | None = None
        self._plain_step: PlainStep | None = None
        if self.optimizer is not None:
            rate = self.lr_schedule(1.0)
            self.policy.optimizer = fed_with_gradients(self.optimizer, self.policy, rate)
        if ranks.count() > 1 and protocol_of(self.policy.optimizer) == "hessian":
            raise ConfigurationError(
                f"optimizer={self.optimizer!r} probes the Hessian of one rank's samples, and there "
                f"are {ranks.count()} ranks of torch.distributed: take another optimizer"
            )

    def _prepare(self, rows: int) -> None:
        """Finds out how passes of so many samples are made, and the steps after them.

        Args:
            rows: Most samples of a pass.
        """
        by_hand = None
        if protocol_of(self.policy.optimizer) == "gradient":  # another needs the graph
            by_hand = plain_actor_critic(self.policy, rows, self._by_hand)
        self._by_hand, optimizer, step = by_hand, self.policy.optimizer, self._plain_step
        if by_hand is None:
            self._plain_step = None
        elif step is None or step.optimizer is not optimizer or step.gradient is not by_hand.flat:
            self._plain_step = plain_step(optimizer, by_hand.parameters, by_hand.flat)
        if self._plain_step is not None and not self._plain_step.fits():
            self._plain_step = None

    def _gradients(self, samples: Batch, objective: Objective) -> tuple[Losses, float]:
        if self._by_hand is None:
            return super()._gradients(samples, objective)
        return self._by_hand.gradients(samples, objective, self.max_grad_norm)

    def _step(self) -> None:
        if self._plain_step is None:
            super()._step()
        else:
            self._plain_step.step()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_by_hand", "_plain_step"]
