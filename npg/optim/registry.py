"""Optimizers by name, and one way to drive any of them."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

from npg.errors import ConfigurationError
from npg.optim.adahessian import AdaHessian
from npg.optim.adax import AdaX, AdaXW
from npg.optim.base import FunctionOptimizer, Prediction, trainable
from npg.optim.decay_groups import decay_groups, spared
from npg.optim.directions import NormalizedGradient, SignSGD
from npg.optim.ekfac import EKFAC
from npg.optim.evolution_strategies import EvolutionStrategies
from npg.optim.full_matrix import FullMatrixAdagrad
from npg.optim.hessian import HessianOptimizer
from npg.optim.kbfgs import KBFGS
from npg.optim.kfac import KFAC
from npg.optim.langevin import Langevin
from npg.optim.lbfgs import LBFGS
from npg.optim.loss_flow import LossFlow
from npg.optim.mle_guided_search import MLEGuidedSearch
from npg.optim.muon import MuonWithAdamW
from npg.optim.natural_gradient import NaturalGradient
from npg.optim.newton import GaussNewton, Newton
from npg.optim.newton_cg import NewtonCG
from npg.optim.quasi_newton import BFGS, DFP
from npg.optim.search import ParameterSearch
from npg.optim.shampoo import Shampoo
from npg.optim.shards import refuse_shards
from npg.optim.soap import SOAP
from npg.optim.sophia import SophiaG, SophiaH
from npg.optim.sr1 import SR1

_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "adahessian": AdaHessian,
    "adax": AdaX,
    "adaxw": AdaXW,
    "bfgs": BFGS,
    "dfp": DFP,
    "ekfac": EKFAC,
    "evolution-strategies": EvolutionStrategies,
    "full-matrix-adagrad": FullMatrixAdagrad,
    "gauss-newton": GaussNewton,
    "kbfgs": KBFGS,
    "kfac": KFAC,
    "langevin": Langevin,
    "lbfgs": LBFGS,
    "loss-flow": LossFlow,
    "mle-guided-search": MLEGuidedSearch,
    "muon": MuonWithAdamW,
    "natural-gradient": NaturalGradient,
    "newton": Newton,
    "newton-cg": NewtonCG,
    "normalized-gradient": NormalizedGradient,
    "shampoo": Shampoo,
    "sign-sgd": SignSGD,
    "soap": SOAP,
    "sophia-g": SophiaG,
    "sophia-h": SophiaH,
    "sr1": SR1,
}

# torch's own, as they are: they take parameters where ours take the module.
_OF_TORCH: dict[str, type[torch.optim.Optimizer]] = {
    "adafactor": Adafactor,
    "adagrad": Adagrad,
    "adam": Adam,
    "adamax": Adamax,
    "adamw": AdamW,
    "nadam": NAdam,
    "radam": RAdam,
    "rmsprop": RMSprop,
    "sgd": SGD,
}

# Where a constructor's own are not what anybody trains with, or clearly worse than these on an MLP
# and on a CNN; the rate falls to zero there.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "adafactor": {"lr": 3e-2},
    "adax": {"lr": 5e-3},
    "langevin": {"lr": 0.1},
    "radam": {"lr": 3e-3},
    "rmsprop": {"lr": 1e-3},
    "sgd": {"lr": 0.05, "momentum": 0.9},
}


def names() -> list[str]:
    """Returns the names that :func:`create` knows."""
    return sorted({**_CLASSES, **_OF_TORCH})


def takes(name: str, option: str) -> bool:
    """Says whether an optimizer's constructor has an argument, ``likelihood`` for instance.

    Args:
        name: One of :func:`names`.
        option: Name of the argument.

    Returns:
        Whether :func:`create` can hand it on.

    Raises:
        ConfigurationError: If no optimizer has this name.
    """
    for kind in inspect.getmro(_class(name)):
        known = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
        if option in known:
            return True
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
            return False  # what it does not take, it does not hand on
    return False


def create(
    name: str,
    model: nn.Module,
    lr: float | None = None,
    *,
    decay_biases_and_norms: bool = True,
    **options: Any,
) -> torch.optim.Optimizer:
    """Makes an optimizer by name.

    Args:
        name: One of :func:`names`.
        model: Module to train, or its parameters.
        lr: Learning rate. Default: the optimizer's own, but 0.03 for ``"adafactor"``, 0.005 for
            ``"adax"``, 0.1 for ``"langevin"``, 0.003 for ``"radam"``, 0.001 for ``"rmsprop"``, and
            0.05 for ``"sgd"``, whose momentum is 0.9.
        decay_biases_and_norms: Whether weight decay is for all parameters; False spares vectors and
            whatever normalisation layers have.
        **options: Further arguments of the optimizer's class. ``parameters``, which restricts
            ``model``, goes with all of them.

    Returns:
        The optimizer.

    Raises:
        ConfigurationError: If no optimizer has this name, or it has no weight decay to spare.
    """
    kind = _class(name)
    if not decay_biases_and_norms:
        model, options = _sparing(name, model, options)
    if lr is not None:
        options["lr"] = lr
    options = {**_DEFAULTS.get(name, {}), **options}
    if name in _OF_TORCH:
        given: list[Any] = list(trainable(model, options.pop("parameters", None)))
        if name == "adafactor":  # squares norms in place, which DTensors do not allow
            refuse_shards(kind.__name__, given)
        return kind(given, **options)
    return kind(model, **options)  # type: ignore[arg-type]


def _sparing(name: str, model: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
    """Model and options with which biases and norms do not decay."""
    if not takes(name, "weight_decay"):
        raise ConfigurationError(f"decay_biases_and_norms=False: {name!r} has no weight_decay=")
    if not isinstance(model, nn.Module):
        model = list(model)
    parameters = options.pop("parameters", None)
    parameters = None if parameters is None else list(parameters)
    if name == "muon":  # it divides its parameters itself
        everything = model.parameters() if isinstance(model, nn.Module) else model
        light = spared(model, everything if parameters is None else parameters)
        return model, {**options, "parameters": parameters, "undecayed": light}
    groups = decay_groups(model, parameters)
    if isinstance(model, nn.Module):
        return model, {**options, "parameters": groups}
    return groups, options


def train_step(
    optimizer: torch.optim.Optimizer,
    forward: Callable[[], tuple[Tensor, Prediction]],
    objective: Callable[[Any], Tensor | float] | None = None,
) -> float:
    """Takes one training step with any optimizer.

    Args:
        optimizer: One of this library's, driven as its ``protocol`` says, or any of torch's.
        forward: Runs the forward pass and returns (loss, prediction).
        objective: What :class:`MLEGuidedSearch` and :class:`EvolutionStrategies` minimise, of a
            prediction: 1 − accuracy, say. Default: the loss.

    Returns:
        The loss before the step; for evolution strategies the objective.

    Raises:
        ConfigurationError: If an objective is given to another optimizer.
    """
    if isinstance(optimizer, ParameterSearch):
        return float(optimizer.step(optimizer.closure_of(forward, objective)))
    if objective is not None:
        raise ConfigurationError(
            f"{type(optimizer).__name__} minimises a loss, and takes no objective=: let forward "
            "return npg.objectives.score_function(...), or use mle-guided-search"
        )
    if isinstance(optimizer, FunctionOptimizer | HessianOptimizer):
        return float(optimizer.step(forward))  # type: ignore[arg-type]
    optimizer.zero_grad()
    loss, _ = forward()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _class(name: str) -> type[torch.optim.Optimizer]:
    known = {**_CLASSES, **_OF_TORCH}
    if name not in known:
        raise ConfigurationError(f"no optimizer is named {name!r}; there are {', '.join(names())}")
    return known[name]
