"""Optimizers: each a choice of prediction, curvature, preconditioner and step rule."""

from torch.optim import SGD, Adam, AdamW

from npg.optim.base import FunctionOptimizer, StepReport
from npg.optim.ekfac import EKFAC
from npg.optim.kfac import KFAC
from npg.optim.natural_gradient import FisherInverse, NaturalGradient, StepNorm
from npg.optim.newton_cg import NewtonCG
from npg.optim.registry import create, names, takes, train_step

__all__ = [
    "EKFAC",
    "KFAC",
    "SGD",
    "Adam",
    "AdamW",
    "FisherInverse",
    "FunctionOptimizer",
    "NaturalGradient",
    "NewtonCG",
    "StepNorm",
    "StepReport",
    "create",
    "names",
    "takes",
    "train_step",
]
