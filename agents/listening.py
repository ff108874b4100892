"""K-FAC that hooks a policy only while it takes statistics, and can return to where it was.

A hook on a layer keeps everybody else from passing torch's modules by: with one, collecting a
rollout takes three times as long. A copied or saved policy should have none either.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from npg.optim import KFAC


def statistics_due(optimizer: KFAC) -> bool:
    """Whether the next step takes statistics."""
    return int(optimizer.extra["steps"]) % optimizer.statistics_interval == 0


def quiet(optimizer: KFAC) -> None:
    """Takes the optimizer's hooks off the policy."""
    optimizer.fisher.capture.remove()
    optimizer.fisher.capture.active = statistics_due(optimizer)


@contextmanager
def listening(*optimizers: KFAC) -> Iterator[bool]:
    """Lets optimizers hear the passes inside, those whose next step takes statistics.

    Args:
        *optimizers: Of one policy.

    Yields:
        Whether one of them listens.
    """
    due = [optimizer for optimizer in optimizers if statistics_due(optimizer)]
    try:
        for optimizer in due:
            optimizer.fisher.listen()
        yield bool(due)
    finally:
        for optimizer in due:
            optimizer.fisher.capture.remove()


class KFACSnapshot:
    """An optimizer's own state, to return to if what follows fails; parameters are not in it.

    Args:
        optimizer: Between two steps.
    """

    def __init__(self, optimizer: KFAC) -> None:
        self.optimizer = optimizer
        self.extra = dict(optimizer.extra)
        self.skipped = optimizer.skipped
        self.state = {
            p: {name: value.clone() for name, value in state.items()}
            for p, state in optimizer.state.items()
        }
        # Moments change in place; inverses are replaced, so that their lists are enough.
        self.fisher: list[dict[str, Any]] = [
            {**entry, "moments": [moment.clone() for moment in entry["moments"]]}
            for entry in optimizer.fisher.state()
        ]
        self.preconditioner = {
            name: copy.copy(value) for name, value in optimizer.preconditioner.state_dict().items()
        }
        self.generator = optimizer.generator.get_state()

    def restore(self) -> None:
        """Restores all of it, and forgets what was heard since."""
        optimizer = self.optimizer
        optimizer.extra.clear()
        optimizer.extra.update(self.extra)
        optimizer.extra["skipped"] += self.skipped - optimizer.skipped
        optimizer.state.clear()
        optimizer.state.update(self.state)
        optimizer.fisher.clear()
        optimizer.fisher.load(self.fisher)
        optimizer.preconditioner.load_state_dict(self.preconditioner)
        optimizer.generator.set_state(self.generator)
        quiet(optimizer)
