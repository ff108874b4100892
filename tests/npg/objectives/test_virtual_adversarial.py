"""Virtual adversarial training against dense Fisher matrices in input space."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, MultivariateNormal, Normal
from torch.func import jacrev, vmap
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.likelihoods import Product
from npg.objectives import VirtualAdversarial
from npg.optim import NaturalGradient
from tests.npg.oracles import TIGHT, mlp

SCALE = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def fisher_categorical(logits):
    p = logits.softmax(-1)
    return torch.diag(p) - p.outer(p)


def fisher_bernoulli(logits):
    p = logits.sigmoid()
    return torch.diag(p * (1 - p))


# How three outputs parametrise a prediction, and its Fisher matrix in them, of one sample.
KINDS = {
    "categorical": ("categorical", fisher_categorical),
    "bernoulli": ("bernoulli", fisher_bernoulli),
    "normal": ("normal", lambda _: torch.eye(3)),
    "mse": ("mse", lambda _: torch.eye(3) * 2 / 3),
    "policy": (
        lambda mean: Independent(Normal(mean, SCALE.expand_as(mean)), 1),
        lambda _: torch.diag(SCALE**-2),
    ),
    "multivariate": (
        lambda mean: MultivariateNormal(mean, covariance_matrix=torch.diag(SCALE)),
        lambda _: torch.diag(1 / SCALE),
    ),
    "product": (
        lambda t: Product([Categorical(logits=t[:, :2]), Bernoulli(logits=t[:, 2])]),
        lambda t: torch.block_diag(fisher_categorical(t[:2]), fisher_bernoulli(t[2:])),
    ),
}


def dense(model, x, fisher):
    """F of each sample in its inputs [N, d, d], by torch.func."""
    jacobians = vmap(jacrev(lambda row: model(row[None])[0]))(x)
    inner = torch.stack([fisher(t) for t in model(x).detach()])
    return jacobians.mT @ inner @ jacobians


@pytest.mark.parametrize("kind", KINDS)
class TestDirection:
    def test_power_iteration_converges_to_the_top_eigenvector(self, kind):
        likelihood, fisher = KINDS[kind]
        model, x = mlp(), torch.randn(6, 3)
        values, vectors = torch.linalg.eigh(dense(model, x, fisher))
        adversarial = VirtualAdversarial(model, 0.2, likelihood, power_iterations=400)
        found = adversarial.perturbation(x) / 0.2
        overlap = (found * vectors[..., -1]).sum(1).abs()
        clear = values[:, -2] < 0.95 * values[:, -1]  # 0.95⁴⁰⁰ = 1e-9
        assert clear.sum() >= 3
        torch.testing.assert_close(overlap[clear], torch.ones(int(clear.sum())), **TIGHT)

    def test_every_iteration_multiplies_by_the_matrix(self, kind):
        likelihood, fisher = KINDS[kind]
        model, x = mlp(), torch.randn(6, 3)
        direction = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
        matrices = dense(model, x, fisher)
        for steps in (1, 2, 3):
            direction = torch.einsum("nij,nj->ni", matrices, direction)
            direction = direction / direction.norm(dim=1, keepdim=True)
            adversarial = VirtualAdversarial(model, 0.5, likelihood, power_iterations=steps, seed=3)
            torch.testing.assert_close(adversarial.perturbation(x), 0.5 * direction, **TIGHT)

    def test_the_loss_is_half_the_top_eigenvalue(self, kind):
        """KL = ½ ε² λ to second order; what is left is of third order, a tenth of it at ε/10."""
        likelihood, fisher = KINDS[kind]
        model, x = mlp(), torch.randn(6, 3)
        top = torch.linalg.eigvalsh(dense(model, x, fisher))[:, -1].mean().detach()
        gaps = []
        for epsilon in (1e-2, 1e-3):
            adversarial = VirtualAdversarial(model, epsilon, likelihood, power_iterations=300)
            ratio = adversarial(x).detach() / (epsilon**2 * top / 2)
            gaps.append(abs(float(ratio) - 1))
        assert gaps[0] < 0.05
        assert gaps[1] < max(gaps[0] / 5, 1e-4)


class TestLoss:
    def test_logistic_regression_in_closed_form(self):
        """F = p(1 − p) w wᵀ: r = ±ε w/‖w‖ after one product, and KL is that of two coins."""
        model, x = nn.Linear(3, 1), torch.randn(5, 3)
        adversarial = VirtualAdversarial(model, 0.7, "bernoulli")
        r = adversarial.perturbation(x)
        w = model.weight.detach()[0]
        torch.testing.assert_close((r @ w).abs(), (0.7 * w.norm()).expand(5), **TIGHT)
        again = VirtualAdversarial(model, 0.7, "bernoulli")
        p, q = model(x).sigmoid(), model(x + r).sigmoid()
        expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
        torch.testing.assert_close(again(x), expected, **TIGHT)

    def test_gradient_flows_through_the_moved_prediction_only(self):
        model, x = mlp(), torch.randn(5, 3)
        r = VirtualAdversarial(model, 0.3, "categorical").perturbation(x)
        clean = model(x).softmax(1).detach()
        by_hand = (clean * (clean.log() - model(x + r).log_softmax(1))).sum(1).mean()
        loss = VirtualAdversarial(model, 0.3, "categorical")(x)
        torch.testing.assert_close(loss, by_hand, **TIGHT)
        parameters = list(model.parameters())
        torch.testing.assert_close(
            torch.autograd.grad(loss, parameters), torch.autograd.grad(by_hand, parameters), **TIGHT
        )

    def test_gradcheck(self):
        model, x = mlp(), torch.randn(4, 3)
        r = VirtualAdversarial(model, 0.3, "categorical").perturbation(x)
        assert torch.isfinite(r).all()

        def loss(weight):
            # p(·|x) and r are constants of the objective: those of the module as it is.
            predict = iter(
                (model, lambda i: torch.func.functional_call(model, {"0.weight": weight}, (i,)))
            )
            return VirtualAdversarial(
                model, 0.3, "categorical", predict=lambda i: next(predict)(i)
            )(x)

        assert torch.autograd.gradcheck(loss, (model[0].weight.detach().clone().requires_grad_(),))

    def test_it_is_larger_than_random_noise_of_the_same_length(self):
        model, x = mlp(), torch.randn(200, 3)
        loss = VirtualAdversarial(model, 0.3, "categorical", power_iterations=5)(x)
        noise = F.normalize(torch.randn(200, 3)) * 0.3
        p, q = model(x).log_softmax(1), model(x + noise).log_softmax(1)
        assert loss > 1.3 * (p.exp() * (p - q)).sum(1).mean()

    def test_images_in_float32(self):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).float()
        x = torch.rand(4, 1, 8, 8, dtype=torch.float32)
        adversarial = VirtualAdversarial(model, 2.0, "categorical")
        lengths = adversarial.perturbation(x).flatten(1).norm(dim=1)
        torch.testing.assert_close(lengths, torch.full((4,), 2.0, dtype=torch.float32))
        assert adversarial(x).dtype == torch.float32

    def test_saturated_predictions_are_finite(self):
        """In float32 p(1 − p) is 1e-38 there, or 0: squares of the product underflow."""
        model = nn.Linear(2, 1, dtype=torch.float32)
        for scale in (85.0, 1e4):
            x = torch.full((3, 2), scale, dtype=torch.float32)
            with torch.no_grad():
                model.weight.fill_(0.5)
                model.bias.zero_()
            adversarial = VirtualAdversarial(model, 1.0, "bernoulli")
            r = adversarial.perturbation(x)
            torch.testing.assert_close(r.norm(dim=1), torch.ones(3, dtype=torch.float32))
            assert torch.isfinite(adversarial(x))


class TestConditions:
    @staticmethod
    def noisy():
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    def test_statistics_and_generators_stay(self):
        model, x = self.noisy(), torch.randn(10, 3)
        model(x)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        generator = torch.get_rng_state()
        loss = F.cross_entropy(model(x), torch.zeros(10).long())
        moved = {name: value.clone() for name, value in model.state_dict().items()}
        after = torch.get_rng_state()
        total = loss + VirtualAdversarial(model, 0.1, "categorical")(x)
        total.backward()  # BatchNorm's graph is not spoilt
        for name, value in model.state_dict().items():
            assert torch.equal(value, moved[name]), name
        assert not torch.equal(before["1.running_mean"], moved["1.running_mean"])
        assert torch.equal(torch.get_rng_state(), after)
        assert not torch.equal(generator, after)

    def test_dropout_masks_are_the_same_in_both_passes(self):
        """So that a perturbation of length 0 has a divergence of 0."""
        model, x = self.noisy(), torch.randn(10, 3)
        loss = VirtualAdversarial(model, 0.0, "categorical")(x).detach()
        assert abs(float(loss)) < 1e-15
        masks = [model(x), model(x)]
        assert not torch.equal(*masks)

    def test_two_forward_passes(self):
        model, x, calls = mlp(), torch.randn(4, 3), []
        model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        VirtualAdversarial(model, 0.1, "categorical", power_iterations=5)(x)
        assert len(calls) == 2

    def test_no_gradient_is_left_in_parameters_or_inputs(self):
        model, x = mlp(), torch.randn(4, 3)
        VirtualAdversarial(model, 0.1, "categorical")(x)
        assert x.grad is None
        assert not x.requires_grad
        assert all(p.grad is None for p in model.parameters())

    def test_state_resumes(self):
        model, x = mlp(), torch.randn(4, 3)
        first, second = (VirtualAdversarial(model, 0.1, "categorical", seed=s) for s in (1, 2))
        first(x)
        second.load_state_dict(first.state_dict())
        assert torch.equal(first.perturbation(x), second.perturbation(x))

    def test_attention(self):
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3))
        x = torch.randn(5, 3, 4)
        loss = VirtualAdversarial(model, 0.1, "categorical")(x)
        loss.backward()
        assert float(loss.detach()) > 0


class TestUse:
    def test_a_policy_in_a_closure(self):
        """The surrogate of a Gaussian policy with VAT, in a trust region: line searches evaluate it
        without gradients."""
        policy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        observations, advantages = torch.randn(50, 4), torch.randn(50)

        def predict(x):
            mean = policy(x)
            return Independent(Normal(mean, torch.ones_like(mean)), 1)

        actions = predict(observations).sample()
        adversarial = VirtualAdversarial(policy, 0.1, predict=predict)
        start = adversarial.start(observations)

        def closure():
            prediction = predict(observations)
            loss = -(prediction.log_prob(actions) * advantages).mean()
            return loss + adversarial(observations, start), prediction

        again = adversarial.perturbation(observations, start)
        assert torch.equal(adversarial.perturbation(observations, start), again)

        optimizer = NaturalGradient(policy, target_kl=0.01)
        report = optimizer.step(closure)
        assert report.accepted
        assert report.loss_after < report.loss

    def test_two_moons_with_one_label_each(self):
        """VAT carries a label along its moon; without it the boundary is a straight cut."""
        angle, y = torch.rand(200) * math.pi, torch.arange(200) % 2
        x = torch.stack([angle.cos(), angle.sin()], 1)
        x[y == 1] = torch.tensor([1.0, 0.4]) - x[y == 1]
        middle = (angle - math.pi / 2).abs()
        labelled = [int((middle + 9 * (y != label)).argmin()) for label in (0, 1)]

        def accuracy(weight):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
            )
            adversarial = VirtualAdversarial(model, 0.3, "categorical")
            optimizer = torch.optim.Adam(model.parameters(), 1e-2)
            for _ in range(300):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[labelled]), y[labelled])
                if weight:
                    loss = loss + weight * adversarial(x)
                loss.backward()
                optimizer.step()
            return float((model(x).argmax(1) == y).double().mean())

        assert accuracy(0.0) < 0.95
        assert accuracy(1.0) > 0.98


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: VirtualAdversarial(mlp(), -0.1), "epsilon"),
        (lambda: VirtualAdversarial(mlp(), math.inf), "epsilon"),
        (lambda: VirtualAdversarial(mlp(), 0.1, power_iterations=0), "power_iterations"),
        (lambda: VirtualAdversarial(lambda x: x, 0.1), "predict="),
        (lambda: VirtualAdversarial(mlp(), 0.1)(torch.randn(4, 3)), "likelihood="),
        (lambda: VirtualAdversarial(mlp(), 0.1)(torch.ones(4, 3).long()), "floating"),
        (
            lambda: VirtualAdversarial(mlp(), 0.1, "normal")(torch.ones(4, 3), torch.ones(3)),
            "start",
        ),
        (
            lambda: VirtualAdversarial(mlp(), 0.1, lambda t: Normal(t, 1.0))(torch.randn(4, 3)),
            "ambiguous",
        ),
        (
            lambda: VirtualAdversarial(
                mlp(), 0.1, "categorical", predict=lambda x: torch.zeros(4, 3)
            )(torch.randn(4, 3)),
            "depends on none",
        ),
    ],
)
def test_errors(call, says):
    with pytest.raises(ConfigurationError, match=says):
        call()
