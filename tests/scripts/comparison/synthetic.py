"""Comparisons as they lie on the disk, with made-up numbers of known order."""

import json
import math
from pathlib import Path

import numpy as np

SCRIPT = "<script>document.title = 'taken over'</script>"
AGENTS = {"trpo": 1.0, "sb3-contrib:trpo": 0.8, "sb3:ppo": 0.6, "agents_of_mine:Agent": 0.97}
ENVIRONMENTS = {"CartPole-v1": (20, 500, 50_000), "Hopper-v5": (15, 2500, 300_000)}
OPTIMIZERS = {"kfac": (0.2, 0.03, 0.02), "adamw": (0.3, 0.003, 0.004), "sgd": (0.4, 0.1, 0.003)}
RATES = (0.001, 0.01, 0.1, 1.0)


def about(kind, planned, **changed):
    return {
        "kind": kind,
        "command": f"python scripts/compare.py {kind}s --seeds 5 --output reports/made-up",
        "started": "2026-01-02T03:04:05",
        "machine": {"cores": 2, "cpu": "Made-up CPU", "python": "3.11.2"},
        "versions": {"torch": "2.13.0", "stable-baselines3": "2.9.2"},
        "jobs": 2,
        "threads": 1,
        "wall_clock_counts": True,
        "steps": 300_000,
        "planned": planned,
        **changed,
    }


def save(directory: Path, runs: dict, **changed) -> Path:
    """Writes comparison.json and the runs that are not None, the missing ones."""
    kind = next(run["kind"] for run in runs.values() if run)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "comparison.json").write_text(json.dumps(about(kind, [*runs], **changed)))
    for name, run in runs.items():
        folder = directory / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        if run is not None:
            (folder / "result.json").write_text(json.dumps(run))
    return directory


def slug(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")


def agent_run(name, task, seed, final, curve=((100, 1.0, 0.0), (200, 2.0, 10.0)), **changed):
    return {
        "kind": "agent",
        "name": name,
        "task": task,
        "seed": seed,
        "status": "finished",
        "error": "",
        "command": f"python scripts/comparison/agent_run.py {name} {task} {seed}",
        "arguments": {"learning_rate": 0.001, "n_steps": 512},
        "preset": f"rl_zoo_{slug(name)}.yml",
        "steps": curve[-1][0],
        "seconds": curve[-1][1],
        "num_envs": 1,
        "threads": 1,
        "curve": curve,
        "final": final,
        "diagnostics": {},
        **changed,
    }


def agents(directory: Path, seeds: int = 5, **changed) -> Path:
    """Four agents, two environments; one run failed, one is missing."""
    draw = np.random.default_rng(0)
    runs = {}
    for name, quality in AGENTS.items():
        for task, (start, end, budget) in ENVIRONMENTS.items():
            for seed in range(seeds):
                steps = np.linspace(1000, budget, 60)
                learned = 1 - np.exp(-4 * steps / budget)
                top = quality * end * draw.uniform(0.9, 1)
                values = start + (top - start) * learned + draw.normal(0, end / 80, 60)
                seconds = steps / (2000 if name == "trpo" else 900) * draw.uniform(0.95, 1.05)
                ours = "trpo" in name
                kl = [[x, 0.01 * draw.uniform(0.3, 1.03)] for x in steps[::2]] if ours else []
                runs[f"{slug(name)}_{task}_{seed}"] = agent_run(
                    name,
                    task,
                    seed,
                    list(np.minimum(top + draw.normal(0, end / 100, 20), end)),
                    np.column_stack([steps, seconds, values]).tolist(),
                    steps=budget,
                    diagnostics={
                        "kl": kl,
                        "kl_bound": 0.01 if ours else None,
                        "cg_residual": [[x, 10 ** draw.uniform(-3, -1)] for x, _ in kl],
                        "accepted_step": [[x, float(draw.random() < 0.9)] for x, _ in kl],
                        "explained_variance": [
                            [x, v] for x, v in zip(steps, learned * 0.9, strict=True)
                        ],
                    },
                )
    broken = runs[f"sb3-ppo_Hopper-v5_{seeds - 1}"]
    trace = f"Traceback (most recent call last):\n  in step\nValueError: {SCRIPT} at step 1,000"
    broken |= {"status": "failed", "error": trace, "final": [], "curve": [], "diagnostics": {}}
    runs[f"sb3-contrib-trpo_CartPole-v1_{seeds - 1}"] = None
    return save(directory, runs, **changed)


def optimizer_run(name, task, seed, rate, losses, metric=0.9, **changed):
    evaluations = [[10 * i, 0.5 * i, loss, metric] for i, loss in enumerate(losses, 1)]
    return {
        "kind": "optimizer",
        "name": name,
        "task": task,
        "seed": seed,
        "rate": rate,
        "status": "finished",
        "error": "",
        "command": f"python scripts/comparison/optimizer_run.py {name} {task} {seed} {rate}",
        "arguments": {"lr": rate, "batch_size": 128},
        "steps": 10 * len(losses),
        "seconds": 0.5 * len(losses),
        "step_seconds": 0.05,
        "peak_memory_mb": 300.0,
        "threads": 1,
        "curve": [[*row[:2], row[2]] for row in evaluations],
        "evaluations": evaluations,
        "metric": "accuracy",
        "larger_is_better": True,
        "final": [metric],
        "final_loss": losses[-1],
        **changed,
    }


def diverged(run, error="diverged: the loss is inf at step 15"):
    """What is left of a run after its first evaluation."""
    return {
        "status": "failed",
        "error": error,
        "curve": run["curve"][:1],
        "evaluations": run["evaluations"][:1],
        "final": [],
        "final_loss": None,
    }


def too_slow(run):
    return diverged(run, "too slow: step 16 takes longer than the budget of 5 s")


def optimizers(directory: Path, seeds: int = 5, **changed) -> Path:
    """Three optimizers, two tasks; the largest rate diverges, one run failed, one is missing."""
    draw = np.random.default_rng(0)
    runs = {}
    for name, (floor, best, step) in OPTIMIZERS.items():
        for task in ("digits-mlp", "digits-autoencoder"):
            for seed in range(seeds):
                for rate in RATES:
                    off = abs(math.log10(rate / best))
                    steps = np.arange(20, 420, 20)
                    end = floor * (1 + off) * draw.uniform(0.95, 1.05)
                    losses = end + (2.3 - end) * np.exp(-steps / (60 + 60 * off))
                    seconds = steps * step * draw.uniform(0.95, 1.05)
                    classifies = task == "digits-mlp"
                    metrics = np.exp(-losses / 4) if classifies else losses / 10
                    run = optimizer_run(name, task, seed, rate, [1.0])
                    run |= {
                        "steps": 400,
                        "seconds": seconds[-1],
                        "step_seconds": step,
                        "curve": np.column_stack([steps, seconds, losses * 0.8]).tolist(),
                        "evaluations": np.column_stack([steps, seconds, losses, metrics]).tolist(),
                        "metric": "accuracy" if classifies else "reconstruction_error",
                        "larger_is_better": classifies,
                        "final": [metrics[-1]],
                        "final_loss": losses[-1],
                    }
                    if name == "adamw" and rate == 1:
                        run |= diverged(run)
                    runs[f"{name}_{task}_{seed}_{rate:g}"] = run
    runs["sgd_digits-mlp_0_1"] |= {"status": "failed", "error": f"ValueError: {SCRIPT}"}
    runs["kfac_digits-mlp_1_0.001"] = None
    runs["kfac_digits-autoencoder_0_1"] |= too_slow(runs["kfac_digits-autoencoder_0_1"])
    return save(directory, runs, **changed)
