"""Matrices of a model, known by their products with vectors.

```python
F = Fisher(model, prediction=lambda: Categorical(logits=model(x)))
step = cg(F + 0.1, gradient).x
```
"""

from npg.curvature.averaged import MeanOverRanks
from npg.curvature.fisher import Fisher
from npg.curvature.gauss_newton import GaussNewton
from npg.curvature.hessian import Hessian
from npg.curvature.jacobian import Jacobian
from npg.curvature.matrix import CurvatureMatrix, DampedMatrix, math_attention
from npg.curvature.same_conditions import SameConditions

__all__ = [
    "CurvatureMatrix",
    "DampedMatrix",
    "Fisher",
    "GaussNewton",
    "Hessian",
    "Jacobian",
    "MeanOverRanks",
    "SameConditions",
    "math_attention",
]
