"""What a checkpoint holds beyond Stable-Baselines3's: optimizers, normaliser, generators."""

import random
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecNormalize

from envs import load_normalization_state, normalization_state
from npg.errors import CheckpointError

if TYPE_CHECKING:
    from agents.on_policy import OnPolicy


_SETTINGS = ("training", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon")


class TrainingState:
    """A view of an agent's extra state, as tensors and primitives only.

    It has ``state_dict`` and ``load_state_dict``, so that ``get_parameters`` and ``set_parameters``
    of Stable-Baselines3 treat it as they treat the policy.

    Args:
        model: The agent.

    Attributes:
        normaliser: State of the observation and reward normaliser in the file that was loaded.
    """

    def __init__(self, model: "OnPolicy") -> None:
        self.model = model
        self.normaliser: dict[str, Any] | None = None
        self._generators: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Collects the state."""
        env = self.model.get_vec_normalize_env()
        return {
            "optimizers": {n: o.state_dict() for n, o in self.model._optimizers().items()},
            "normaliser": self.normaliser if env is None else normalization_state(env),
            "generators": generators(),
        }

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Restores the optimizers; normaliser and generators wait until the agent asks for them.

        Args:
            state: What :meth:`state_dict` gave, or an empty mapping to keep what there is.
            strict: Ignored: a state that is absent starts afresh.

        Raises:
            CheckpointError: If the normaliser or the generators are none; nothing was loaded.
        """
        if state.get("normaliser") is not None:
            _check_normaliser(state["normaliser"])
        if state.get("generators") is not None:
            _check_generators(state["generators"])  # before anything is loaded
        for name, optimizer in self.model._optimizers().items():
            if name in state.get("optimizers", {}):
                optimizer.load_state_dict(state["optimizers"][name])
        self.normaliser = state.get("normaliser", self.normaliser)
        self._generators = state.get("generators")

    def fill(self, normaliser: VecNormalize) -> None:
        """Gives the stored statistics to a normaliser that has seen nothing yet.

        Its settings stay the user's; one that does not normalise what the stored one did is left
        alone.
        """
        state = self.normaliser
        if state is None or not _unused(normaliser):
            return
        if (normaliser.norm_obs, normaliser.norm_obs_keys) == (
            state["norm_obs"],
            state["norm_obs_keys"],
        ):
            own = {name: getattr(normaliser, name) for name in _SETTINGS}
            load_normalization_state(normaliser, {**state, **own})
        elif state["norm_obs"] and not normaliser.norm_obs:
            warnings.warn(
                "the policy of this checkpoint was trained on normalised observations, and the "
                "given VecNormalize has norm_obs=False: give raw environments, which get the "
                "stored normaliser, or norm_obs=True",
                stacklevel=4,
            )

    def restore_generators(self, saved: dict[str, Any] | None = None) -> None:
        """Sets Python's, NumPy's and torch's global generators to where they were at saving.

        Args:
            saved: What :func:`generators` returned. Default: that of the file that was loaded.
        """
        state = self._generators if saved is None else saved
        if state is None:
            return
        _check_generators(state)
        python = state["python"]
        random.setstate((python[0], tuple(python[1].cpu().tolist()), python[2]))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(state["torch"].cpu())
        on_devices = [each.cpu() for each in state.get("cuda", [])]
        if on_devices and len(on_devices) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(on_devices)


def generators() -> dict[str, Any]:
    """Where Python's, NumPy's and torch's global generators are."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (SB3 draws from it)
    return {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _check_generators(state: dict[str, Any]) -> None:
    """What is set without looking by those who own them, who then read wherever it points to."""
    name, keys, position, has_gauss, gauss = state["numpy"]
    words = state["python"][1]
    if (
        name != "MT19937"
        or not _is_integer(keys, (624,))
        or not (type(position) is int and 0 <= position <= 624)
        or has_gauss not in (0, 1)
        or not isinstance(gauss, float)
    ):
        raise CheckpointError("generators: the state of NumPy's is none of an MT19937")
    if not (_is_integer(words, (625,)) and 0 <= int(words[-1]) <= 624):
        raise CheckpointError("generators: the state of Python's is none of an MT19937")
    try:
        torch.Generator().set_state(state["torch"].cpu())
    except Exception as error:
        raise CheckpointError(f"generators: the state of torch's is none: {error}") from error


def _is_integer(words: object, shape: tuple[int, ...]) -> bool:
    """Whether something is a vector of unsigned numbers of 32 bits."""
    return (
        isinstance(words, torch.Tensor)
        and words.dtype is torch.int64
        and words.shape == shape
        and bool(((words >= 0) & (words < 2**32)).all())
    )


def _check_normaliser(state: dict[str, Any]) -> None:
    moments = [*state["obs_rms"].values(), state["ret_rms"]]
    for moment in moments:
        mean, var, count = (moment[name] for name in ("mean", "var", "count"))
        if not all(isinstance(value, torch.Tensor) for value in (mean, var, count)) or (
            mean.shape != var.shape or count.numel() != 1
        ):
            raise CheckpointError("normaliser: its moments are no mean, variance and number")
    numbers = [state[name] for name in ("clip_obs", "clip_reward", "gamma", "epsilon")]
    if not all(isinstance(number, int | float) for number in numbers):
        raise CheckpointError("normaliser: a setting is no number")


def _unused(normaliser: VecNormalize) -> bool:
    statistics = normaliser.obs_rms if normaliser.norm_obs else normaliser.ret_rms
    if isinstance(statistics, dict):
        statistics = next(iter(statistics.values()))
    # The first reset gives one observation per environment, before anything was learned.
    return bool(statistics.count <= normaliser.num_envs + 1)
