"""What guards a natural-gradient step: the trust region, counted skips, refused closures."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import NaturalGradient
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import Checkpointed, categorical_kl, classifier


class TestTrustRegion:
    def test_holds_over_a_whole_training_and_learns(self):
        """Four blobs, two to a class on a line through the other two."""
        generator = torch.Generator().manual_seed(0)
        centers = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
        index = torch.arange(200) % 4
        x = centers[index] + 0.5 * torch.randn(200, 2, generator=generator)
        y = index // 2
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).float()
        x = x.float()
        optimizer = NaturalGradient(model, target_kl=0.05, damping=1e-3, likelihood="categorical")
        accepted = 0
        for _ in range(12):
            with torch.no_grad():
                old = model(x).double()
            report = optimizer.step(objective(model, x, y))
            with torch.no_grad():
                new = model(x).double()
            assert float(categorical_kl(old, new)) <= 0.05
            if report.accepted:
                assert report.loss_after < report.loss
                accepted += 1
        assert accepted == 12
        accuracy = float((model(x).argmax(1) == y).double().mean())
        assert accuracy > 0.97

    def test_the_line_search_is_what_holds_it(self):
        """Far out the quadratic model is wrong, and the full step leaves the region."""
        model, x, y = classifier()
        options = {"target_kl": 0.5, "damping": 1e-2, "likelihood": "categorical"}
        other = copy.deepcopy(model)
        free = NaturalGradient(other, line_search=False, **options).step(objective(other, x, y))
        assert free.kl > 1.0
        assert free.loss_after > free.loss
        assert free.fraction == 1.0
        report = NaturalGradient(model, **options).step(objective(model, x, y))
        assert report.accepted
        assert report.kl <= 0.5
        assert report.fraction == pytest.approx(0.8 ** round(math.log(report.fraction, 0.8)))
        assert report.fraction < 1.0

    def test_where_the_distribution_holds_the_parameters_themselves(self):
        """A scale that is a view of a parameter moves with it; the reference must not."""
        mean, sigma = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
        y = torch.randn(50, 2) * 0.2 + 3

        def closure():
            p = Independent(Normal(mean.expand(50, 2), sigma.expand(50, 2)), 1)
            return -p.log_prob(y).mean(), p

        report = NaturalGradient([mean, sigma], damping=0.0).step(closure)
        # KL(N(0, 1) ‖ N(μ, σ)) = log σ + (1 + μ²)/2σ² − ½, per coordinate
        kl = sigma.log() + (1 + mean**2) / (2 * sigma**2) - 0.5
        assert report.kl == pytest.approx(float(kl.sum().detach()), rel=1e-9)
        assert 0.001 < report.kl <= 0.01

    def test_a_reference_of_the_past(self):
        """Steps from one reference stay within one budget."""
        model, x, y = classifier()
        optimizer = NaturalGradient(model, target_kl=0.02, likelihood="categorical")
        with torch.no_grad():
            logits = model(x)
        reports = [
            optimizer.step(objective(model, x, y), reference=Categorical(logits=logits))
            for _ in range(4)
        ]
        with torch.no_grad():
            total = float(categorical_kl(logits, model(x)))
        assert reports[0].accepted
        assert total <= 0.02
        last = [report for report in reports if report.accepted][-1]
        assert last.kl == pytest.approx(total, rel=1e-9)

    def test_a_failed_search_restores_bit_for_bit(self):
        model, x, y = classifier()
        start = snapshot(model)
        calls = []

        def closure():
            logits = model(x)
            calls.append(torch.is_grad_enabled())
            loss = F.cross_entropy(logits, y)
            return (loss if len(calls) == 1 else loss + 100), logits

        optimizer = NaturalGradient(model, likelihood="categorical", line_search_max_iter=4)
        report = optimizer.step(closure)
        assert calls == [True, False, False, False, False]
        assert not report.accepted
        assert report.reason == "line search failed"
        assert (report.kl, report.fraction, report.loss_after) == (0.0, 0.0, report.loss)
        assert torch.equal(snapshot(model), start)
        assert optimizer.extra["rejected"] == 1

    def test_an_exception_in_a_trial_restores_bit_for_bit(self):
        model, x, y = classifier()
        start = snapshot(model)
        calls = []

        def closure():
            calls.append(1)
            if len(calls) > 1:
                raise KeyboardInterrupt
            return objective(model, x, y)()

        with pytest.raises(KeyboardInterrupt):
            NaturalGradient(model, likelihood="categorical").step(closure)
        assert torch.equal(snapshot(model), start)

    def test_without_a_search_a_step_to_infinity_is_refused(self):
        model, x, y = nn.Linear(3, 1), torch.randn(7, 3), torch.randn(7, 1)
        start = snapshot(model)

        def closure():
            output = model(x)
            return F.mse_loss(output, y), output

        optimizer = NaturalGradient(model, lr=1e200, target_kl=None, likelihood="mse")
        report = optimizer.step(closure)
        assert not report.accepted
        assert report.reason == "step is not finite"
        assert torch.equal(snapshot(model), start)


class TestSkips:
    def check(self, model, closure, reason):
        start = snapshot(model)
        optimizer = NaturalGradient(model, likelihood="categorical")
        report = optimizer.step(closure)
        assert not report.accepted
        assert report.reason.startswith(reason)
        assert torch.equal(snapshot(model), start)
        assert (optimizer.extra["steps"], optimizer.extra["skipped"]) == (1, 1)
        assert report.kl == 0.0

    @pytest.mark.parametrize("product", [True, False])
    @pytest.mark.parametrize("factor", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite(self, factor, product):
        model, x, y = classifier()

        def closure():
            logits = model(x)
            # the gradient of the sum is finite, that of the product is not
            loss = F.cross_entropy(logits, y)
            return (loss * factor if product else loss + factor), logits

        self.check(model, closure, "loss or gradient is not finite")

    def test_a_gradient_that_is_not_finite(self):
        """√ has an infinite slope at 0, where its value is fine."""
        model, x, _ = classifier()

        def closure():
            logits = model(x)
            return (logits * 0).sum().abs().sqrt(), logits

        self.check(model, closure, "loss or gradient is not finite")

    def test_a_zero_gradient(self):
        model, x, _ = classifier()

        def closure():
            logits = model(x)
            return (logits * 0).sum(), logits

        self.check(model, closure, "zero gradient")

    def test_a_direction_that_is_not_finite(self):
        model, x, y = classifier()
        start = snapshot(model)
        optimizer = NaturalGradient(model, likelihood="categorical")
        optimizer.param_groups[0]["lr"] = math.inf
        report = optimizer.step(objective(model, x, y))
        assert report.reason == "direction is not finite"
        assert torch.equal(snapshot(model), start)

    def test_a_direction_that_does_not_change_the_prediction(self):
        model, x, _ = classifier()
        idle = nn.Parameter(torch.ones(2))
        model.register_parameter("idle", idle)

        def closure():
            logits = model(x)
            return idle.square().sum(), logits

        self.check(model, closure, "no direction")


class TestClosures:
    def test_torchs_own_is_told_what_to_change(self):
        model, x, y = classifier()
        optimizer = NaturalGradient(model, likelihood="categorical")

        def torchs():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        def both():
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            return loss, logits

        def detached():
            logits = model(x)
            return F.cross_entropy(logits, y).detach(), logits

        def per_sample():
            logits = model(x)
            return F.cross_entropy(logits, y, reduction="none"), logits

        start = snapshot(model)
        for closure in (torchs, both, detached, per_sample):
            with pytest.raises(ConfigurationError, match=r"NaturalGradient.*no backward\(\)"):
                optimizer.step(closure)
        assert torch.equal(snapshot(model), start)

    def test_a_tensor_without_a_likelihood(self):
        model, x, y = classifier()
        with pytest.raises(ConfigurationError, match="likelihood="):
            NaturalGradient(model).step(objective(model, x, y))

    def test_under_no_grad(self):
        model, x, y = classifier()
        with torch.no_grad():
            report = NaturalGradient(model, likelihood="categorical").step(objective(model, x, y))
        assert report.accepted

    def test_leaves_no_gradients(self):
        model, x, y = classifier()
        NaturalGradient(model, likelihood="categorical").step(objective(model, x, y))
        assert all(p.grad is None for p in model.parameters())

    def test_attention_needs_no_context(self):
        torch.set_default_dtype(torch.float32)  # the fused kernels' own
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        model = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))
        x, y = torch.randn(7, 4, 8), torch.randint(3, (7,))
        report = NaturalGradient(model, likelihood="categorical").step(objective(model, x, y))
        assert report.accepted

    def test_reentrant_checkpointing_is_refused(self):
        """Its parameters would silently stay where they are."""
        model, x = Checkpointed(reentrant=True), torch.randn(7, 3, requires_grad=True)
        optimizer = NaturalGradient(model, likelihood="categorical")
        with pytest.raises((ConfigurationError, RuntimeError), match="use_reentrant"):
            optimizer.step(objective(model, x, torch.randint(3, (7,))))
