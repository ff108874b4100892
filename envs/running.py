"""Running mean and variance of a stream of batches."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd


class LeanRunningMeanStd(RunningMeanStd):
    """`RunningMeanStd` with an update that costs about what its arithmetic costs.

    Moments of a batch combine with the running ones by Chan, Golub and LeVeque (1979).
    Attributes are replaced, never changed in place, so that a reference stays a snapshot.
    """

    def update(self, arr: np.ndarray) -> None:
        """Take in a batch.

        Args:
            arr: shape (n, *shape).
        """
        # In double precision, unlike np.mean of a float32 batch: differences of large numbers
        # stay accurate, and squares do not overflow.
        arr = arr.astype(np.float64)
        if len(arr) > 1:
            # np.mean and np.var, without the part of them that is Python.
            mean = np.add.reduce(arr, axis=0) / len(arr)
            arr -= mean
            var = np.add.reduce(arr * arr, axis=0) / len(arr)
            self.update_from_moments(mean, var, len(arr))
            return
        total = self.count + 1
        delta = arr[0] - self.mean
        step = delta / total
        # One sample has no variance: (var·count + δ²·count/total)/total with one factor out.
        self.var = (self.var + delta * step) * (self.count / total)
        self.mean = self.mean + step
        self.count = total
