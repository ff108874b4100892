"""Where the runs of a comparison are made: in processes of this machine, or on a cluster's."""

from contextlib import AbstractContextManager, nullcontext

from comparison.backends.backend import Backend
from comparison.execution_options import Execution
from npg.errors import ConfigurationError


def opened(execution: Execution) -> AbstractContextManager[Backend]:
    """Opens the backend that was asked for.

    Args:
        execution: What asks for it.

    Returns:
        A context that gives the backend, and closes it at its end.

    Raises:
        ConfigurationError: If a package is not installed, or an address is given to what has none.
            Entering the context raises it where the cluster cannot be had.
    """
    if execution.backend == "ray":
        try:
            from comparison.backends import cluster
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"--backend ray needs Ray ({error}): pip install .[ray]"
            ) from error
        return cluster.connected(execution.address, execution.jobs)
    if execution.address is not None:
        raise ConfigurationError(
            f"address {execution.address} is one of a Ray cluster: add --backend ray, or leave "
            "--address out"
        )
    from comparison.backends.local import Local

    return nullcontext(Local(execution.jobs))
