"""What a natural-gradient method must know of a predictive distribution.

A distribution is parametrised by tensors (logits; mean and scale) that a model computed. For each
family this module knows those tensors, the Fisher matrix in them in closed form, and how to draw
labels with a generator. :func:`register` opens it to more families, as ``torch.distributions.kl``
is open.

A *sample* is one element of ``batch_shape``. A ``Normal`` or ``Bernoulli`` with a batch of two or
more dimensions could mean independent samples or the coordinates of one sample; it is refused, and
``Independent(distribution, 1)`` says which.
"""

from npg.likelihoods import families
from npg.likelihoods.measures import detached, joint_kl, score
from npg.likelihoods.named import NAMED, as_distribution
from npg.likelihoods.product import Product
from npg.likelihoods.registry import Likelihood, likelihood, register

__all__ = [
    "NAMED",
    "Likelihood",
    "Product",
    "as_distribution",
    "detached",
    "families",
    "joint_kl",
    "likelihood",
    "register",
    "score",
]
