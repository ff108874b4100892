import signal
import sys
from pathlib import Path

import pytest

# `python scripts/train.py` finds its helpers beside it.
SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

TINY = ["--n-steps", "64", "--critic", "gauss-newton", "--eval-episodes", "3", "--seed", "3"]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A finished run of 256 steps with a normaliser; tests copy it before they change it."""
    from train import main

    track_dir = tmp_path_factory.mktemp("runs")
    words = f"trpo --env CartPole-v1 --track-dir {track_dir} --num-envs 2 --total-timesteps 256"
    words += " --normalize-obs --normalize-reward --eval-freq 100"
    assert main([*words.split(), *TINY]) == 0
    return track_dir / "trpo_CartPole-v1_1"


@pytest.fixture(scope="session")
def classified(tmp_path_factory):
    """Two epochs with AdamW; tests copy it before they change it."""
    from tests.scripts.classified import classify

    return classify(tmp_path_factory.mktemp("runs"), "--optimizer", "adamw", "--epochs", 2)


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves classify.py's learning curves out, which take longer to draw than the runs here:
    `classified` has one, and so have runs that end early."""
    import classify

    def drawn_otherwise(directories, output):
        if output.name != classify.PLOT:
            draw(directories, output)

    draw = classify.plots.draw
    monkeypatch.setattr(classify.plots, "draw", drawn_otherwise)


@pytest.fixture
def default_interrupts():
    """A shell's background job, as CI may be, starts with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def before_step(monkeypatch):
    """Calls a function before classify.py's step with a number, counted over all runs."""
    from classification import loop

    def arrange(number, function):
        count = iter(range(10**6))
        step = loop.train_step

        def counted(*arguments):
            if next(count) == number:
                function()
            return step(*arguments)

        monkeypatch.setattr(loop, "train_step", counted)

    return arrange
