"""Optimizers: each a choice of prediction, curvature, preconditioner and step rule.

Torch's own are here as they are, so that one namespace has them all.
"""

from torch.optim import (
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    RAdam,
    RMSprop,
)

from npg.optim.adahessian import AdaHessian
from npg.optim.adax import AdaX, AdaXW
from npg.optim.base import FunctionOptimizer, StepReport
from npg.optim.directions import NormalizedGradient, SignSGD
from npg.optim.ekfac import EKFAC
from npg.optim.evolution_strategies import EvolutionStrategies
from npg.optim.full_matrix import FullMatrixAdagrad
from npg.optim.gradient import GradientOptimizer
from npg.optim.hessian import HessianOptimizer
from npg.optim.kbfgs import KBFGS
from npg.optim.kfac import KFAC
from npg.optim.langevin import Langevin
from npg.optim.lbfgs import LBFGS
from npg.optim.loss_flow import LossFlow
from npg.optim.minimize import MinimizeResult, minimize
from npg.optim.mle_guided_search import MLEGuidedSearch
from npg.optim.muon import MuonWithAdamW
from npg.optim.natural_gradient import FisherInverse, NaturalGradient, StepNorm
from npg.optim.newton import GaussNewton, Newton
from npg.optim.newton_cg import NewtonCG
from npg.optim.quasi_newton import BFGS, DFP
from npg.optim.registry import create, names, takes, train_step
from npg.optim.search import ParameterSearch, SearchReport
from npg.optim.shampoo import Shampoo
from npg.optim.soap import SOAP
from npg.optim.sophia import SophiaG, SophiaH
from npg.optim.sr1 import SR1

__all__ = [
    "BFGS",
    "DFP",
    "EKFAC",
    "KBFGS",
    "KFAC",
    "LBFGS",
    "SGD",
    "SOAP",
    "SR1",
    "AdaHessian",
    "AdaX",
    "AdaXW",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "EvolutionStrategies",
    "FisherInverse",
    "FullMatrixAdagrad",
    "FunctionOptimizer",
    "GaussNewton",
    "GradientOptimizer",
    "HessianOptimizer",
    "Langevin",
    "LossFlow",
    "MLEGuidedSearch",
    "MinimizeResult",
    "Muon",
    "MuonWithAdamW",
    "NAdam",
    "NaturalGradient",
    "Newton",
    "NewtonCG",
    "NormalizedGradient",
    "ParameterSearch",
    "RAdam",
    "RMSprop",
    "SearchReport",
    "Shampoo",
    "SignSGD",
    "SophiaG",
    "SophiaH",
    "StepNorm",
    "StepReport",
    "create",
    "minimize",
    "names",
    "takes",
    "train_step",
]
