"""comparison.json: what is compared, by which command, on which machine."""

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.run_directory import versions

from comparison import files, machine
from comparison.execution_options import Execution
from npg.errors import ConfigurationError

FILE = "comparison.json"


def begin(
    directory: Path,
    kind: str,
    command: str,
    execution: Execution,
    settings: Mapping[str, Any],
    planned: Sequence[str],
    refused: Sequence[Mapping[str, str]] = (),
    for_page: Mapping[str, Any] | None = None,
) -> None:
    """Writes comparison.json, or adds runs to the comparison that is there.

    Args:
        directory: Of the comparison, locked.
        kind: "agent" or "optimizer".
        command: What the user typed.
        execution: Where the runs are made, and how many at a time.
        settings: What all runs share, "steps" for instance, and what may not change therefore.
        planned: Names of the runs.
        refused: Name, task and reason of what does not apply and is not run.
        for_page: What the page is told besides; it may change.

    Raises:
        ConfigurationError: If the directory holds a comparison of another kind, or with other
            settings, or one whose comparison.json is damaged.
    """
    earlier = files.read(directory / FILE) or {}
    if not earlier and (directory / FILE).exists():
        raise ConfigurationError(
            f"{directory / FILE}, which says how the runs there were made, cannot be read: restore "
            "it, or choose another --output"
        )
    for name, value in {"kind": kind, **settings}.items() if earlier else ():
        if earlier.get(name) != value:
            raise ConfigurationError(
                f"{directory} holds a comparison with {name} {earlier.get(name)}, this one has "
                f"{value}: choose another --output, or compare with the same"
            )
    here = machine.here()
    results = {path.parent.name for path in directory.glob(f"{files.RUNS}/*/{files.RESULT}")}
    # On a cluster each run says how crowded its machine was: see Results.seconds_count.
    nothing_to_make = results.issuperset(planned)
    enough = nothing_to_make or execution.backend == "ray" or execution.jobs <= here["cores"]
    honest_clock = enough and (not results or earlier.get("wall_clock_counts", True))
    known = earlier.get("does_not_apply", [])
    record = {
        "kind": kind,
        "command": command,
        "started": earlier.get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z")),
        "machine": {**here, "python": platform.python_version()},
        "versions": versions(),
        "backend": execution.backend,
        "jobs": execution.jobs,
        "threads": 1,
        "wall_clock_counts": honest_clock,
        **settings,
        **(for_page or {}),
        "planned": list(dict.fromkeys([*earlier.get("planned", []), *planned])),
        "does_not_apply": [*known, *(refusal for refusal in refused if refusal not in known)],
    }
    files.write(directory / FILE, record)
