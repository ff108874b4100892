"""What train.py and evaluate.py are made of."""

import sys
from types import ModuleType

from common import ROOT


def check_agents(module: ModuleType) -> None:
    """Exits with a sentence if this is the unrelated package of the same name."""
    if not hasattr(module, "TRPO"):
        print(
            f"error: the package `agents` at {module.__file__} is not this project's but an "
            "unrelated one of the same name: `pip uninstall agents`, then `pip install -e .` here",
            file=sys.stderr,
        )
        raise SystemExit(2)


try:
    import agents
except ImportError as missing:
    print(f"error: {missing}: run `make setup`, or `pip install -e .` in {ROOT}", file=sys.stderr)
    raise SystemExit(2) from missing
check_agents(agents)
