"""The generalised Gauss–Newton matrix of a loss of a model's output."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from npg.curvature.batched import vector_jacobian_products
from npg.curvature.jacobian import Jacobian
from npg.curvature.matrix import CurvatureMatrix, math_attention
from npg.errors import ConfigurationError
from npg.linalg import empty_flat, symmetrised


class GaussNewton(CurvatureMatrix):
    """G = Jᵀ H_L J, with H_L the Hessian of the loss in the model's output.

    Positive semi-definite if the loss is convex in the output. It is not where the output is a
    Normal's mean and scale: use :class:`npg.curvature.Fisher` there.

    Args:
        model: Module whose parameters the matrix is over, or the parameters.
        prediction: Callable that runs the model and returns its output tensor, or such a tensor
            whose graph is still there.
        loss: Callable from the output tensor to the scalar loss; or the loss itself, computed
            from a ``prediction`` given as a tensor. Its reduction is kept: for a mean over
            samples G is a mean.
        parameters: Restricts the matrix to a part of the model.

    Raises:
        ConfigurationError: If the loss does not depend on the prediction.

    Reference:
        Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent",
        2002.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Tensor],
        prediction: Callable[[], Tensor] | Tensor,
        loss: Callable[[Tensor], Tensor] | Tensor,
        *,
        parameters: Iterable[Tensor] | None = None,
    ) -> None:
        super().__init__(model, parameters)
        if not isinstance(prediction, Tensor):
            with torch.enable_grad(), math_attention():
                prediction = prediction()
        self.jacobian = Jacobian([prediction], self.parameters)
        with torch.enable_grad():
            if isinstance(loss, Tensor):
                self.output, value = prediction, loss
            else:
                self.output = prediction.detach().requires_grad_()
                value = loss(self.output)
            (gradient,) = torch.autograd.grad(
                value, self.output, create_graph=True, allow_unused=True
            )
        if gradient is None:
            raise ConfigurationError("the loss must be computed from the very tensor of prediction")
        self.output_gradient: Tensor = gradient

    def gradient(self) -> Tensor:
        """Returns Jᵀ∇L, the flat gradient [P] of the loss by way of the prediction."""
        return self.jacobian.vjp([self.output_gradient.detach()])

    def output_product(self, tangent: Tensor) -> Tensor:
        """Returns H_L t for a tangent of the output's shape."""
        if not self.output_gradient.requires_grad:  # a loss linear in the output
            return torch.zeros_like(tangent)
        (product,) = torch.autograd.grad(
            self.output_gradient, self.output, tangent, retain_graph=True, materialize_grads=True
        )
        return product

    def matvec(self, vector: Tensor) -> Tensor:
        """Returns G v for a flat v [P]."""
        (tangent,) = self.jacobian.jvp(vector)
        return self.jacobian.vjp([self.output_product(tangent)])

    def to_dense(self) -> Tensor:
        """Forms the matrix [P, P], symmetrised: for small models.

        Returns:
            JᵀH_L J from the Jacobian's rows, many at once, where the output has no more elements
            than there are parameters; else from P products.
        """
        (output,) = self.jacobian.outputs
        if output.numel() > self.shape[0]:
            return super().to_dense()
        if not self.output_gradient.requires_grad:
            return torch.diag(torch.zeros_like(empty_flat(self.parameters)))
        units = torch.eye(output.numel(), dtype=output.dtype, device=output.device)
        rows = vector_jacobian_products([output], self.parameters, units)
        # Row p of this is H_L ∂output/∂θ_p.
        products = vector_jacobian_products([self.output_gradient], [self.output], rows.T)
        return symmetrised(products.to(rows) @ rows)
