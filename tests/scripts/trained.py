"""What the tests of train.py share: words for a short run, and the steps of its rows."""

from training import run_directory

TINY = ["--n-steps", "64", "--critic", "gauss-newton", "--eval-episodes", "3"]


def steps_of(directory, column="rollout/ep_rew_mean"):
    rows = run_directory.read_progress(directory)
    return [int(row["time/total_timesteps"]) for row in rows if row[column]]
