"""The optimizers that go from evaluation to evaluation, each in the ways that its tests take it."""

from npg.optim import BFGS, DFP, LBFGS, SR1
from npg.steps import Armijo

KINDS = {
    "bfgs": (BFGS, {}),
    "bfgs-armijo": (BFGS, {"line_search": Armijo(), "powell_damping": 0.2}),
    "dfp": (DFP, {}),
    "lbfgs": (LBFGS, {"history_size": 3}),
    "lbfgs-fixed": (LBFGS, {"line_search": None, "lr": 0.1, "powell_damping": 0.2}),
    "sr1": (SR1, {}),
    "sr1-search": (SR1, {"globalisation": "line-search"}),
}


class Kind:
    """One of the optimizers with its settings; called as its class would be."""

    def __init__(self, name):
        self.type, self.options = KINDS[name]
        self.fixed = self.options.get("line_search", 0) is None

    def __call__(self, model, **options):
        return self.type(model, **{**self.options, **options})


def train(optimizer, closure, steps):
    return [optimizer.step(closure) for _ in range(steps)]
