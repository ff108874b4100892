"""How far to go along a direction."""

from npg.steps.kl_step import kl_step_length
from npg.steps.levenberg_marquardt import LevenbergMarquardt
from npg.steps.trust_region import Trial, TrustRegion

__all__ = ["LevenbergMarquardt", "Trial", "TrustRegion", "kl_step_length"]
