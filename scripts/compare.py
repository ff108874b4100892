"""Compares agents, or runs of classify.py, under equal conditions.

    python scripts/compare.py agents --envs CartPole-v1 Hopper-v5 \
        --agents trpo sb3:ppo sb3-contrib:trpo --seeds 5 --total-timesteps 300000 --jobs 2
    python scripts/compare.py report reports/agents
    python scripts/compare.py runs runs/digits_mlp_adamw_1 runs/digits_mlp_natural-gradient_1

Exit codes: 0 done, 1 a run failed, 2 what was asked for cannot work, 128 + n stopped by signal n
(130 is Ctrl-C; the same command goes on).
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from common.failures import Failure, configuration_errors, plain_warnings
from comparison.options import AgentRun, Agents, Report, Runs

Command = (
    Annotated[Agents, tyro.conf.subcommand("agents", description="Compare agents.")]
    | Annotated[AgentRun, tyro.conf.subcommand("agent", description="Make one of the runs.")]
    | Annotated[Report, tyro.conf.subcommand("report", description="Write the page anew.")]
    | Annotated[Runs, tyro.conf.subcommand("runs", description="Draw runs of classify.py.")]
)


def main(argv: Sequence[str]) -> int:
    """Does what the command line says; returns the exit code."""
    plain_warnings()
    options = tyro.cli(Command, prog="compare.py", description=__doc__, args=argv)
    try:
        return _run(options)
    except Failure as failure:
        return failure.report()


def _run(options: Agents | AgentRun | Report | Runs) -> int:
    """Imports what the command needs, and no more."""
    match options:
        case Agents():
            from comparison import agents

            return agents.run(options)
        case AgentRun():
            from comparison import agent_run

            return agent_run.run(options)
        case Report():
            raise NotImplementedError
        case Runs():
            from classification import plots

            with configuration_errors():
                plots.draw(options.runs, options.output)
            print(options.output)
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
