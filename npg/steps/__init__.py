"""How far to go along a direction."""

from npg.steps.cg_backtracking import CGBacktracking
from npg.steps.interpolation import Point
from npg.steps.kl_adaptive import KLAdaptive
from npg.steps.kl_clip import kl_clip_factor, norm_constraint_factor
from npg.steps.kl_step import kl_step_length
from npg.steps.levenberg_marquardt import LevenbergMarquardt
from npg.steps.line_search import Armijo, Found, StrongWolfe
from npg.steps.quadratic_model import QuadraticStep, minimise_quadratic
from npg.steps.trust_region import Trial, TrustRegion

__all__ = [
    "Armijo",
    "CGBacktracking",
    "Found",
    "KLAdaptive",
    "LevenbergMarquardt",
    "Point",
    "QuadraticStep",
    "StrongWolfe",
    "Trial",
    "TrustRegion",
    "kl_clip_factor",
    "kl_step_length",
    "minimise_quadratic",
    "norm_constraint_factor",
]
