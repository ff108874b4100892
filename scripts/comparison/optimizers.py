"""A comparison of optimizers: every one on every task, at equally many rates, from every seed."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

from common.failures import configuration_errors
from rich.console import Console

from comparison import optimizer_summary
from comparison.job import Job
from comparison.optimizer_options import Optimizers
from comparison.optimizer_plan import plan
from comparison.rates import DIVERGED, TOO_SLOW
from comparison.session import compare
from npg.errors import ConfigurationError


def run(options: Optimizers) -> int:
    """Compares optimizers.

    Args:
        options: Of the comparison.

    Returns:
        The exit code: 0, 1 if a run failed otherwise than by diverging or by steps longer than the
        budget, 128 + n after signal n.

    Raises:
        Failure: If the configuration cannot work.
    """
    with configuration_errors():
        jobs, refused = plan(options)
        for refusal in refused:
            print(f"note: does not apply to {refusal.task}: {refusal.reason}", file=sys.stderr)
        if not jobs:
            raise ConfigurationError("none of the optimizers applies to any of the models")
        code = compare(
            jobs,
            options.output,
            "optimizer",
            options.execution,
            {
                "budget": _budget(options),
                "batch_size": options.batch_size,
                "schedule": options.schedule,
            },
            "test metric",
            [asdict(refusal) for refusal in refused],
            {"target": options.target},
        )
    optimizer_summary.show(jobs, Console())
    return 0 if code == 1 and _no_fault(jobs) else code


def _budget(options: Optimizers) -> str:
    budget = []
    if options.budget_seconds is not None:
        budget.append(f"{options.budget_seconds:g} s of training steps")
    if options.epochs is not None:
        budget.append(f"{options.epochs} epoch{'s' if options.epochs > 1 else ''}")
    return ", at most ".join(budget)


def _no_fault(jobs: Sequence[Job]) -> bool:
    """Says whether the runs that failed did so by a rate that is too high, or steps too long."""
    results = [job.result() or {} for job in jobs]
    failures = [result["error"] for result in results if result.get("status") == "failed"]
    return all(failure.startswith((f"{DIVERGED}: ", f"{TOO_SLOW}: ")) for failure in failures)
