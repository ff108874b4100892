"""Function evaluations of the minimisers against SciPy's, on the Moré–Garbow–Hillstrom problems."""

from collections.abc import Callable
from statistics import geometric_mean

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import bfgs_step
from benchmarks.minimisers import Run, ours, scipys, torchs
from benchmarks.more_garbow_hillstrom import PROBLEMS, Problem
from benchmarks.report import Row, show

Pair = tuple[Problem, Run, Run]
# (ours, SciPy's, target of the evaluations in total). SciPy has no DFP; that it has an SR1 with a
# trust region only among its methods for constraints makes BFGS worth showing beside it.
TORCHS = "torch's LBFGS"
COMPARISONS = [
    ("bfgs", "BFGS", "<= 1.2"),
    ("l-bfgs", "L-BFGS-B", "<= 1.2"),
    ("l-bfgs", TORCHS, "<= 1.2"),
    ("sr1", "trust-constr", "<= 1.2"),
    ("newton-cg", "Newton-CG", "<= 1.2"),
    ("newton", "trust-exact", "<= 1.2"),
    ("newton", "trust-krylov", "<= 1.2"),
    ("sr1", "BFGS", ""),
    ("dfp", "BFGS", ""),
]


def run(rounds: int, command: str) -> None:
    """Counts evaluations until f − f* ≤ 1e-8·max(1, |f*|), in runs with one gradient tolerance.

    Args:
        rounds: Of what is timed.
        command: That was typed.
    """
    our_runs = _run_all(ours, [method for method, _, _ in COMPARISONS])
    scipy_runs = _run_all(_peers, [peer for _, peer, _ in COMPARISONS])
    rows = []
    for method, peer, target in COMPARISONS:
        pairs = list(zip(PROBLEMS, our_runs[method], scipy_runs[peer], strict=True))
        Console(width=140).print(by_problem(method, peer, pairs))
        rows += compare(method, peer, target, pairs)
    show("Minimisation", [*rows, *bfgs_step.rows(rounds)], command)


def _peers(problem: Problem, method: str) -> Run:
    return (torchs if method == TORCHS else scipys)(problem, method)


def _run_all(minimise: Callable[[Problem, str], Run], methods: list[str]) -> dict[str, list[Run]]:
    methods = list(dict.fromkeys(methods))
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(methods) * len(PROBLEMS))
        runs: dict[str, list[Run]] = {}
        for method in methods:
            progress.update(task, description=method)
            runs[method] = []
            for problem in PROBLEMS:
                runs[method].append(minimise(problem, method))
                progress.advance(task)
    return runs


def compare(method: str, peer: str, target: str, pairs: list[Pair]) -> list[Row]:
    """Adds up what both solve, and counts what the peer alone solves.

    Args:
        method: Ours.
        peer: SciPy's.
        target: Of the ratio of the totals; empty where there is none, and then failures have none
            either.
        pairs: Our run and SciPy's on every problem.
    """
    both = [(a, b) for _, a, b in pairs if a.evaluations and b.evaluations]
    us, them = sum(a.evaluations for a, _ in both), sum(b.evaluations for _, b in both)
    alone = [problem.name for problem, a, b in pairs if b.evaluations and not a.evaluations]
    solved = f"solves {sum(a.evaluations is not None for _, a, _ in pairs)} of {len(pairs)}"
    peer_solved = f"{peer} {sum(b.evaluations is not None for _, _, b in pairs)}"
    return [
        Row(
            f"{method}, evaluations in total where both solve ({len(both)})",
            f"{us}",
            f"{peer} {them}",
            us / them,
            target,
        ),
        Row(
            f"{method}, geometric mean of the ratios",
            "",
            peer,
            geometric_mean(a.evaluations / b.evaluations for a, b in both),
        ),
        Row(
            f"{method}, problems that only {peer} solves: {', '.join(alone) or 'none'}",
            solved,
            peer_solved,
            len(alone),
            target and "<= 0",
        ),
    ]


def by_problem(method: str, peer: str, pairs: list[Pair]) -> Table:
    """Shows where evaluations are lost, and what a run ended at that solved nothing.

    The columns: evaluations until solved, in brackets distinct points of the whole run, and
    products with the Hessian in the whole run, ours by our own count.
    """
    table = Table("problem", "n", title=f"{method} and {peer}")
    for heading in (method, "products", peer, "products", "ratio"):
        table.add_column(heading, justify="right")
    for problem, a, b in pairs:
        ratio = a.evaluations / b.evaluations if a.evaluations and b.evaluations else None
        table.add_row(
            problem.name,
            str(problem.n),
            _evaluations(a),
            str(a.products or ""),
            _evaluations(b),
            str(b.products or ""),
            "" if ratio is None else f"{ratio:.2f}",
            style="red" if (ratio or 0) > 1.2 or (b.evaluations and not a.evaluations) else "",
        )
    again = [f"{problem.name} {a.reported}" for problem, a, _ in pairs if a.reported != a.points]
    if again:
        table.caption = f"Where our nfev is not the number of points: {', '.join(again)}"
    return table


def _evaluations(run: Run) -> str:
    reached = f"ends at {run.end:.3g}" if run.evaluations is None else f"{run.evaluations}"
    return f"{reached} ({run.points})"
