"""The first episode of an evaluation as a video."""

import ctypes.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from npg.errors import ConfigurationError


def prepare_rendering() -> None:
    """Chooses off-screen rendering where there is no display; MuJoCo reads it when imported."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        egl = ctypes.util.find_library("EGL") is not None
        os.environ.setdefault("MUJOCO_GL", "egl" if egl else "osmesa")


class Recording:
    """Collects the frames of the first environment's first episode, as evaluate_policy's callback.

    Args:
        path: Of the mp4 file.
        env: Environments that render arrays.

    Raises:
        ConfigurationError: If video cannot be written here.
    """

    def __init__(self, path: Path, env: VecEnv) -> None:
        try:
            import moviepy  # noqa: F401 - before the episodes are played
        except ImportError as error:
            raise ConfigurationError(
                f"a video needs moviepy ({error}): pip install .[video]"
            ) from error
        if not path.parent.is_dir():
            raise ConfigurationError(f"there is no directory {path.parent}")
        self.path = path
        self.env = env
        self.frames: list[np.ndarray] = []
        self._over = False

    def __call__(self, local: dict[str, Any], _: dict[str, Any]) -> None:
        """Adds a frame, before the last step of the episode at the latest: then it is reset."""
        if local["i"] != 0 or self._over:
            return
        self._over = bool(local["done"])
        if not self._over:
            self.frames.append(self.env.env_method("render", indices=[0])[0])

    def write(self) -> None:
        """Writes the file."""
        from moviepy import ImageSequenceClip

        # The usual codec wants even sizes.
        height, width = (size - size % 2 for size in self.frames[0].shape[:2])
        frames = [frame[:height, :width] for frame in self.frames]
        fps = self.env.get_attr("metadata", indices=[0])[0].get("render_fps", 30)
        ImageSequenceClip(frames, fps=fps).write_videofile(str(self.path), audio=False, logger=None)
