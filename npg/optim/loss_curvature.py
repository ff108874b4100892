"""The matrix and the gradient of a loss, from one evaluation of it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from torch import Tensor
from torch.distributions import Distribution

from npg.curvature import CurvatureMatrix, Fisher, GaussNewton, Hessian
from npg.curvature.chain_operations import ACCUMULATE
from npg.errors import ConfigurationError
from npg.likelihoods import as_distribution
from npg.linalg import flatten
from npg.optim.base import CLOSURE_ADVICE, Prediction

if TYPE_CHECKING:
    from npg.optim.base import FunctionOptimizer

LossMatrix = Literal["gauss-newton", "hessian", "fisher"]


def curvature_and_gradient(
    optimizer: "FunctionOptimizer",
    kind: LossMatrix,
    parameters: Sequence[Tensor],
    loss: Tensor,
    output: Prediction | None,
    likelihood: str | Callable[[Tensor], Distribution] | None,
) -> tuple[CurvatureMatrix, Tensor]:
    """Makes the matrix of a system for a step, and its right-hand side.

    Args:
        optimizer: Whose step it is; errors name it.
        kind: Which matrix.
        parameters: What to differentiate with respect to.
        loss: With its graph.
        output: Prediction that the loss was computed from, with its graph.
        likelihood: What a tensor prediction parametrises; for the Fisher matrix.

    Returns:
        The matrix [P, P], of this rank's part of the batch where the optimizer is distributed, and
        the flat gradient [P], of all of it.

    Raises:
        ConfigurationError: If the prediction does not fit the matrix, or the loss depends on none
            of the parameters.
    """
    with optimizer.graph_needed():
        if kind == "hessian":
            hessian = Hessian(parameters, lambda: loss)
            gradient = optimizer.over_ranks(flatten(g.detach() for g in hessian.gradient))
            if not bool(gradient.any()):
                optimizer.gradient(loss, parameters)  # says so where none takes part
            return hessian, gradient
        if kind == "fisher":
            assert output is not None
            gradient = optimizer.gradient(loss, parameters)
            return Fisher(parameters, as_distribution(output, likelihood)), gradient
        if not isinstance(output, Tensor):
            raise ConfigurationError(
                f'{type(optimizer).__name__}: matrix="gauss-newton" needs a tensor prediction; of '
                f'a Distribution matrix="fisher" takes the same steps. {CLOSURE_ADVICE}'
            )
        matrix = GaussNewton(parameters, output, loss)
        if matrix.jacobian.recognised and _depends_through(output, loss):
            return matrix, optimizer.over_ranks(matrix.gradient())
        return matrix, optimizer.gradient(loss, parameters)


def _depends_through(output: Tensor, loss: Tensor) -> bool:
    """Whether the loss reaches parameters by way of the output alone: no weight penalty, say."""
    todo = [(loss.grad_fn, 0)]
    seen = set()
    while todo:
        node, index = todo.pop()
        if node is None or node in seen or (node, index) == (output.grad_fn, output.output_nr):
            continue
        if node is output.grad_fn or node.name() == ACCUMULATE:
            return False
        seen.add(node)
        todo.extend(node.next_functions)
    return True
