"""Exceptions of the library.

All are ``ValueError``s, so that a hyper-parameter search that prunes a trial on ``ValueError``
(Optuna under rl-zoo, for instance) prunes instead of crashing.
"""


class ConfigurationError(ValueError):
    """An argument, or a combination of arguments, cannot work; the message names the remedy."""


class NumericalError(ValueError):
    """Data or a computation left the finite numbers; parameters are as before the call."""


class CheckpointError(ValueError):
    """A file is not a checkpoint of this library, or is damaged; nothing was loaded."""
