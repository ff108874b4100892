"""What tests of NaturalGradient share: a classifier's closure, and its parameters as one vector."""

from torch.nn import functional as F

from tests.npg.oracles import flat


def objective(model, x, y):
    def closure():
        logits = model(x)
        return F.cross_entropy(logits, y), logits

    return closure


def snapshot(model):
    return flat(model.parameters()).detach().clone()
