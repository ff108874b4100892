"""Natural-gradient and trust-region optimisation: curvature engine and optimizers."""

from npg.errors import CheckpointError, ConfigurationError, NumericalError

__version__ = "0.1.0"
__all__ = ["CheckpointError", "ConfigurationError", "NumericalError", "__version__"]
