"""EnvPool without its Python: the same steps, and EnvPool's own calls where that cannot be."""

from __future__ import annotations

import numpy as np
import pytest

from envs.direct_pool import DirectPool, direct
from envs.envpool_library import build

pytest.importorskip("envpool")


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "HalfCheetah-v5"])
def test_steps_are_those_of_the_pool_it_drives(env_id: str) -> None:
    pools = [build(env_id, 3, [1, 2, 3], None) for _ in range(2)]
    ours, theirs = direct(pools[0]), pools[1]
    assert isinstance(ours, DirectPool)
    np.testing.assert_array_equal(ours.reset()[0], theirs.reset()[0])
    space = theirs.action_space
    space.seed(0)
    for _ in range(230):  # past the ends of episodes, where a pool resets on the next step
        actions = np.stack([space.sample() for _ in range(3)])
        ours.send(actions)
        theirs.send(actions)
        for a, b in zip(ours.recv()[:4], theirs.recv()[:4], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("missing", ["_send", "_recv", "_from", "_state_keys", "_action_keys"])
def test_another_version_of_envpool_is_used_as_it_is(missing: str) -> None:
    pool = build("CartPole-v1", 2, [1, 2], None)

    class Renamed:
        observation_space = pool.observation_space

        def __getattr__(self, name: str) -> object:
            if name == missing:
                raise AttributeError(name)
            return getattr(pool, name)

    renamed = Renamed()
    assert direct(renamed) is renamed


def test_observations_of_several_arrays_are_left_to_envpool() -> None:
    class Several:
        _state_keys = ("obs:position", "obs:velocity", "reward", "done", "trunc")
        _action_keys = ("env_id", "action")
        _from = _send = _recv = None

    assert not DirectPool.applies(Several())
