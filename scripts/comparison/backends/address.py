"""Where a Ray cluster is said to be."""

import socket

from npg.errors import ConfigurationError

CLIENT = "ray://"
SECONDS_TO_CONNECT = 5.0


def check_reachable(address: str) -> None:
    """Refuses an address that nothing answers at: Ray itself tries for minutes.

    Args:
        address: HOST:PORT or ray://HOST:PORT.

    Raises:
        ConfigurationError: If that is so, or it is no address.
    """
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not (host and port.isdecimal()):
        raise ConfigurationError(
            f"address {address!r} is none of auto, HOST:PORT and {CLIENT}HOST:PORT"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"no Ray cluster answers at {address} ({error}): is its head running (`ray start "
            "--head`), and its port open?"
        ) from error
