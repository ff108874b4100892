"""The optimizers that need gradients alone, and the diagonal ones: their steps, their losses."""

from pathlib import Path

from benchmarks import optimizer_losses, optimizer_steps


def run(rounds: int, data_dir: Path, command: str) -> None:
    """Writes both tables."""
    optimizer_steps.run(rounds, data_dir, command)
    optimizer_losses.run(data_dir, command)
