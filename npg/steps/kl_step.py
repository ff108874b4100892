"""The step length at which the quadratic model of the KL divergence meets its target."""

import math

from npg.errors import NumericalError


def kl_step_length(quadratic: float, target_kl: float) -> float:
    """Returns η = √(2δ / xᵀFx), so that ½ (ηx)ᵀ F (ηx) = δ.

    Args:
        quadratic: xᵀFx, with the Fisher matrix undamped, makes the model's KL exactly δ whatever
            damping made x. With the damped matrix, or gᵀx, the step is shorter.
        target_kl: δ, in nats.

    Returns:
        η.

    Raises:
        NumericalError: If xᵀFx is not a positive finite number: the direction does not change the
            prediction, or the products were wrong.

    Reference:
        Kakade, "A natural policy gradient", 2001; Schulman et al., "Trust region policy
        optimization", 2015, appendix C.
    """
    if not (math.isfinite(quadratic) and quadratic > 0):
        raise NumericalError(f"xᵀFx must be positive and finite, got {quadratic}")
    return math.sqrt(2 * target_kl / quadratic)
