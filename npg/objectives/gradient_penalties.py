"""Losses that contain a gradient of the loss, and are differentiated once more."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from npg.curvature import math_attention
from npg.curvature.jacobian import reaches
from npg.errors import ConfigurationError
from npg.objectives.checks import check_weight

FORWARD_ADVICE = "run the forward pass inside `with npg.objectives.double_backpropagation():`"


@contextmanager
def double_backpropagation() -> Iterator[None]:
    """Context for a forward pass whose gradient enters the loss.

    Gradients are on, also where a line search evaluates a closure without them, and attention takes
    the kernel that has derivatives of any order: a curvature matrix of a penalised loss wants the
    third.
    """
    with torch.enable_grad(), math_attention():
        yield


def input_gradient_penalty(
    loss: Tensor,
    inputs: Tensor | Iterable[Tensor],
    weight: float,
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Tensor:
    """λ (1/N) Σₙ ‖∇ₓ ℓₙ‖², with ℓₙ the loss of sample n and the norm over all of its inputs.

    It does not depend on the batch size, nor on how the loss was reduced, once ``reduction`` says
    that. Where samples meet in the model (BatchNorm in training) ∇ₓ is that of the sum of all ℓ.

    Args:
        loss: L = mean or sum of ℓₙ, or the ℓₙ themselves [N]; with its graph. Take the ℓₙ where
            labels are masked or ignored.
        inputs: What the model was given [N, ...]; ``inputs.requires_grad_()`` before the forward
            pass. Several tensors, such as a dictionary's values, count as one.
        weight: λ. High values make a prediction that moves little with its inputs. In expectation
            over the model's own labels, λ = σ²/2 is what noise of deviation σ in the inputs adds
            (Bishop 1995), to second order in σ where the logits are linear in the inputs.
        reduction: How a scalar loss was made of the ℓₙ.

    Returns:
        A scalar, to be added to the loss, with its graph.

    Raises:
        ConfigurationError: If the loss does not depend on the inputs or cannot be differentiated
            twice, or an argument cannot work.

    Reference:
        Drucker and LeCun, "Improving generalization performance using double backpropagation",
        1992.
    """
    if reduction not in ("mean", "sum"):
        raise ConfigurationError(
            f'reduction must be "mean" or "sum", got {reduction!r}: losses per sample are '
            "recognised by their shape"
        )
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if not given or not all(tensor.requires_grad and tensor.ndim for tensor in given):
        raise ConfigurationError(
            "inputs must have shape [samples, ...] and require a gradient: "
            "`inputs.requires_grad_()` before the forward pass"
        )
    samples = len(given[0])
    if loss.ndim and len(loss) != samples:
        raise ConfigurationError(
            f"loss must be a scalar or have one entry for each of the {samples} samples, "
            f"got shape {list(loss.shape)}"
        )
    scale = samples if reduction == "mean" and not loss.ndim else 1
    gradients = _gradients(loss.sum() * scale, given, weight)
    if all(gradient is None for gradient in gradients):
        raise ConfigurationError(
            "loss does not depend on inputs: pass the very tensors that the model was given, not "
            "copies made before or after"
        )
    return _squared_norm(gradients, loss) * (weight / samples)


def parameter_gradient_penalty(
    loss: Tensor, parameters: nn.Module | Iterable[Tensor], weight: float
) -> Tensor:
    """λ ‖∇_θ L‖², with L reduced as it comes.

    Args:
        loss: L, a scalar with its graph: what the optimizer is to minimise, so that its gradient
            is the one that steps are made of.
        parameters: θ, or the module that has them; those that are frozen are left out.
        weight: λ. High values lead to regions where the gradient, of this batch, is small.

    Returns:
        A scalar, to be added to the loss, with its graph.

    Raises:
        ConfigurationError: If the loss depends on none of the parameters or cannot be
            differentiated twice, or the weight cannot work.

    Reference:
        Zhao et al., "Penalizing gradient norm for efficiently improving generalization in deep
        learning", 2022 (there the norm, here its square); Barrett and Dherin, "Implicit gradient
        regularization", 2021, section 7.
    """
    if loss.ndim:
        raise ConfigurationError(f"loss must be a scalar, got shape {list(loss.shape)}")
    given = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    trained = [parameter for parameter in given if parameter.requires_grad]
    gradients = _gradients(loss, trained, weight) if trained else []
    if all(gradient is None for gradient in gradients):
        raise ConfigurationError(
            "parameters: the loss depends on none of them that requires a gradient"
        )
    return _squared_norm(gradients, loss) * weight


def implicit_gradient_regularisation(
    loss: Tensor, parameters: nn.Module | Iterable[Tensor], lr: float
) -> Tensor:
    """L + (η/4) ‖∇_θ L‖², the loss whose gradient flow gradient descent of step η follows.

    A step of descent on L ends at a distance O(η³) from where the flow of this loss is at time η;
    the flow of L itself is off by O(η²). Minimised with small steps it has the regularisation of
    large ones.

    Args:
        loss: L, a scalar with its graph.
        parameters: θ, or the module that has them.
        lr: η, the step size whose effect is wanted.

    Returns:
        The modified loss, a scalar with its graph.

    Raises:
        ConfigurationError: As :func:`parameter_gradient_penalty`.

    Reference:
        Barrett and Dherin, "Implicit gradient regularization", 2021, theorem 3.1.
    """
    check_weight("lr", lr)
    return loss + parameter_gradient_penalty(loss, parameters, lr / 4)


def _gradients(loss: Tensor, of: Sequence[Tensor], weight: float) -> tuple[Tensor | None, ...]:
    check_weight("weight", weight)
    if not loss.requires_grad:
        raise ConfigurationError(f"loss has no graph: {FORWARD_ADVICE}")
    if reaches([loss], "ScaledDotProduct"):
        raise ConfigurationError(f"fused attention has no second derivative: {FORWARD_ADVICE}")
    with torch.enable_grad():
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(
            loss, of, create_graph=True, allow_unused=True
        )
    return gradients


def _squared_norm(gradients: Sequence[Tensor | None], loss: Tensor) -> Tensor:
    squares = [gradient.square().sum() for gradient in gradients if gradient is not None]
    return torch.stack([square.to(loss.dtype) for square in squares]).sum()
