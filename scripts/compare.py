r"""Compares agents, optimizers, or runs of classify.py under equal conditions.

    python scripts/compare.py agents --envs CartPole-v1 Hopper-v5 \
        --agents trpo sb3:ppo sb3-contrib:trpo --seeds 5 --total-timesteps 300000 --jobs 2
    python scripts/compare.py optimizers --data digits --optimizers all --epochs 20 --jobs 2
    python scripts/compare.py report reports/agents
    python scripts/compare.py repeat reports/agents --runs 4
    python scripts/compare.py digest docs/results.md
    python scripts/compare.py runs runs/digits_mlp_adamw_1 runs/digits_mlp_natural-gradient_1

Exit codes: 0 done, 1 a run failed, 2 what was asked for cannot work, 128 + n stopped by signal n
(130 is Ctrl-C; the same command goes on).
"""

import sys
import typing
from collections.abc import Sequence
from typing import Annotated

import tyro
from common.failures import CONFIGURATION, Failure, configuration_errors, plain_warnings
from comparison.optimizer_options import OptimizerRun, Optimizers
from comparison.options import AgentRun, Agents, Digest, Repeat, Report, Runs

from npg.errors import ConfigurationError

SUBCOMMANDS = {
    "agents": (Agents, "Compare agents."),
    "optimizers": (Optimizers, "Compare optimizers."),
    "report": (Report, "Write the page of a comparison anew."),
    "repeat": (
        Repeat,
        "Make runs of a comparison again, and see whether the numbers are the same.",
    ),
    "digest": (Digest, "Write the tables of comparisons into a Markdown page."),
    "runs": (Runs, "Draw runs of classify.py in one picture, one colour an optimizer."),
    "agent": (AgentRun, "Make one run of a comparison of agents."),
    "optimizer": (OptimizerRun, "Make one run of a comparison of optimizers."),
}


def main(argv: Sequence[str]) -> int:
    """Does what the command line says; returns the exit code."""
    plain_warnings()
    commands = tuple(
        Annotated[kind, tyro.conf.subcommand(name, description=description)]
        for name, (kind, description) in SUBCOMMANDS.items()
    )
    options = tyro.cli(
        typing.Union[commands],  # noqa: UP007 - the members are data
        prog="compare.py",
        description=__doc__,
        args=argv,
    )
    try:
        return _run(options)
    except ConfigurationError as error:
        return Failure(str(error), CONFIGURATION).report()
    except Failure as failure:
        return failure.report()


def _run(options: object) -> int:
    """Imports what the command needs, and no more."""
    match options:
        case Agents():
            from comparison import agents

            return agents.run(options)
        case Optimizers():
            from comparison import optimizers

            return optimizers.run(options)
        case AgentRun():
            from comparison import agent_run

            return agent_run.run(options)
        case OptimizerRun():
            from comparison import optimizer_run

            return optimizer_run.run(options)
        case Report():
            from comparison import session

            session.check_page()
            print(session.write_page(options.directory))
            return 0
        case Repeat():
            from comparison import repeat

            return repeat.run(options)
        case Digest():
            from comparison import digest, session

            session.check_page()
            for directory in digest.write(options.page):
                print(directory)
            return 0
        case Runs():
            from classification import plots

            with configuration_errors():
                plots.draw(options.runs, options.output)
            print(options.output)
            return 0
    raise AssertionError(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
