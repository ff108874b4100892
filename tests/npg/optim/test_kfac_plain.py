"""K-FAC in the plain loop, against its formulas written out with dense matrices."""

import copy
import math

import pytest
import torch
from torch.distributions import Categorical
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import EKFAC, KFAC
from tests.npg.optim.helpers import snapshot
from tests.npg.optim.kfac_oracle import (
    DenseKFAC,
    damped_blocks,
    factors,
    joined,
    linears,
)
from tests.npg.oracles import TIGHT, mlp


@pytest.fixture
def batches():
    return [(torch.randn(12, 3), torch.randint(3, (12,))) for _ in range(7)]


def train(optimizer, model, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def exactly(model, **options):
    """K-FAC with the exact Fisher, no clip and no momentum, if not told otherwise."""
    often = {"statistics_interval": 1, "inverse_interval": 1}
    settings = {"kl_clip": math.inf, "momentum": 0.0, **often, **options}
    return KFAC(model, likelihood="categorical", fisher="exact", **settings)


# What the optimizer is given beside the defaults of `exactly`, and the oracle as well.
RULES = {
    "damping": {"damping": 0.3},
    "clip": {"kl_clip": 1e-3},
    "clip far away": {"kl_clip": 1e3},
    "momentum": {"momentum": 0.8},
    "clip and momentum": {"kl_clip": 1e-4, "momentum": 0.5},
    "statistics": {"statistics_interval": 3},
    "inverse": {"inverse_interval": 3},
    "out of phase": {"statistics_interval": 2, "inverse_interval": 3},
    "short memory": {"statistics_decay": 0.4},
    "no memory": {"statistics_decay": 0.0},
    "burn-in": {"burn_in": 3, "inverse_interval": 2, "statistics_interval": 4},
}


class TestDense:
    @pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
    def test_steps_are_those_of_the_formulas(self, rule, batches):
        model = mlp()
        twin = copy.deepcopy(model)
        lr = 0.5
        train(exactly(model, lr=lr, **{"damping": 0.01, **rule}), model, batches)
        oracle = DenseKFAC(twin, [lr] * 6, **rule)
        for x, y in batches:
            oracle.step(x, y)
        torch.testing.assert_close(snapshot(model), snapshot(twin), **TIGHT)
        if rule.get("kl_clip", math.inf) < 1:
            assert min(oracle.clips) < 0.5, "the clip was at work"

    @pytest.mark.parametrize("decoupled", [False, True])
    def test_groups_have_rates_and_decays_of_their_own(self, decoupled, batches):
        model = mlp()
        twin = copy.deepcopy(model)
        clip = 0.06 if decoupled else 0.02
        groups = [
            {"params": [model[0].weight, model[0].bias], "lr": 0.3, "weight_decay": 0.02},
            {"params": [model[2].weight, model[2].bias], "weight_decay": 0.0},
            {"params": [model[4].weight], "lr": 0.1},
            {"params": [model[4].bias], "lr": 0.1, "weight_decay": 0.0},
        ]
        optimizer = exactly(
            model, lr=0.7, kl_clip=clip, momentum=0.6, weight_decay=0.1,
            decoupled_weight_decay=decoupled, parameters=groups,
        )  # fmt: skip
        train(optimizer, model, batches)
        oracle = DenseKFAC(
            twin, [0.3, 0.3, 0.7, 0.7, 0.1, 0.1], kl_clip=clip, momentum=0.6,
            decay=[0.02, 0.02, 0.0, 0.0, 0.1, 0.0], decoupled=decoupled,
        )  # fmt: skip
        for x, y in batches:
            oracle.step(x, y)
        assert len({value < 1 for value in oracle.clips}) == 2, "some are clipped, others not"
        torch.testing.assert_close(snapshot(model), snapshot(twin), **TIGHT)

    def test_defaults(self, batches):
        """λ 0.01, μ 0.9, δ 0.01, inverses each tenth step, memory 0.95."""
        model = mlp()
        twin = copy.deepcopy(model)
        batches = [batches[i % 7] for i in range(25)]
        train(
            KFAC(model, likelihood="categorical", fisher="exact", statistics_interval=1),
            model,
            batches,
        )
        oracle = DenseKFAC(
            twin, [1.0] * 6, damping=0.01, kl_clip=0.01, momentum=0.9, inverse_interval=10
        )
        for x, y in batches:
            oracle.step(x, y)
        torch.testing.assert_close(snapshot(model), snapshot(twin), **TIGHT)

    def test_single_precision_is_near(self, batches):
        model = mlp()
        twin = copy.deepcopy(model).float()
        train(
            KFAC(model, likelihood="categorical", fisher="exact", statistics_interval=1),
            model,
            batches,
        )
        narrow = [(x.float(), y) for x, y in batches]
        train(
            KFAC(twin, likelihood="categorical", fisher="exact", statistics_interval=1),
            twin,
            narrow,
        )
        torch.testing.assert_close(snapshot(twin).double(), snapshot(model), rtol=1e-3, atol=1e-4)

    def test_the_default_type_does_not_round_wider_parameters(self, batches):
        """Factors such as 1 − μ are not to be float32 where parameters are float64."""
        model = mlp()
        twin = copy.deepcopy(model)
        oracle = DenseKFAC(twin, [0.5] * 6, kl_clip=1e-3, momentum=0.9, decay=[0.1] * 6,
                           decoupled=True)  # fmt: skip
        for x, y in batches:
            oracle.step(x, y)
        torch.set_default_dtype(torch.float32)
        optimizer = exactly(
            model, lr=0.5, kl_clip=1e-3, momentum=0.9, weight_decay=0.1,
            decoupled_weight_decay=True,
        )  # fmt: skip
        train(optimizer, model, batches)
        torch.testing.assert_close(snapshot(model), snapshot(twin), **TIGHT)


class TestKLClip:
    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    @pytest.mark.parametrize("rates", [[1.0, 1.0, 1.0], [30.0, 0.2, 3.0]])
    def test_no_step_leaves_the_region_of_a_fixed_matrix(self, momentum, rates, batches):
        """vᵀF̂v / 2 ≤ δ for the whole step, with what momentum carries; and it comes near δ."""
        model = mlp()
        target, damping = 1e-3, 1e-3
        x, y = batches[0]
        dense = damped_blocks(factors(model, x), damping)
        groups = [
            {"params": list(layer.parameters()), "lr": lr}
            for layer, lr in zip(linears(model), rates, strict=True)
        ]
        optimizer = exactly(
            model, damping=damping, kl_clip=target, momentum=momentum, parameters=groups,
            statistics_interval=1000, inverse_interval=1000,
        )  # fmt: skip
        found = []
        for _ in range(30):
            before = [p.detach().clone() for p in model.parameters()]
            train(optimizer, model, [(x, y)])
            steps = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
            kl = 0.0
            for i, block in enumerate(dense):
                v = joined(*steps[2 * i : 2 * i + 2])
                kl += float(v @ block @ v) / 2
            found.append(kl)
        assert max(found) <= target * (1 + 1e-9)
        assert max(found) > 0.5 * target

    @pytest.mark.parametrize(
        ("inverse", "alone"), [("block-diagonal", "4.weight"), ("block-tridiagonal", "4")]
    )
    def test_several_rates_are_refused_where_their_parts_are_not_independent(
        self, inverse, alone, batches
    ):
        model = mlp()
        named = list(model.named_parameters())
        groups = [
            {"params": [p for name, p in named if not name.startswith(alone)]},
            {"params": [p for name, p in named if name.startswith(alone)], "lr": 0.1},
        ]
        optimizer = exactly(model, inverse=inverse, kl_clip=0.01, parameters=groups)
        start = snapshot(model)
        with pytest.raises(ConfigurationError, match=r"give them one, or set kl_clip=math\.inf"):
            train(optimizer, model, batches)
        assert torch.equal(snapshot(model), start)
        optimizer.param_groups[0]["kl_clip"] = math.inf
        train(optimizer, model, batches)


class TestLoop:
    @pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
    @pytest.mark.parametrize("optimizer", [KFAC, EKFAC])
    def test_torchs_closure_is_the_same(self, optimizer, kind, batches):
        model = mlp()
        twin = copy.deepcopy(model)
        train(optimizer(model, likelihood="categorical", fisher=kind), model, batches)
        other = optimizer(twin, likelihood="categorical", fisher=kind)
        for x, y in batches:

            def closure(x=x, y=y):
                other.zero_grad()
                loss = F.cross_entropy(twin(x), y)
                loss.backward()
                return loss

            returned = other.step(closure)
            assert torch.is_tensor(returned)
        assert torch.equal(snapshot(model), snapshot(twin))

    def test_torchs_closure_may_accumulate(self, batches):
        """The gradients are the user's: step(closure) does not clear them by itself."""
        (x, y), (u, v), *_ = batches
        model = mlp()
        twin = copy.deepcopy(model)
        optimizer, other = exactly(model), exactly(twin)
        for forward in ((x, y), (u, v)):
            F.cross_entropy(model(forward[0]), forward[1]).backward()
        optimizer.step()
        F.cross_entropy(twin(x), y).backward()
        other.step(lambda: F.cross_entropy(twin(u), v).backward())
        assert torch.equal(snapshot(model), snapshot(twin))

    def test_accumulated_batches_are_one(self, batches):
        """Half of the batch twice, at half the weight, is the whole batch."""
        x, y = batches[0]
        model = mlp()
        twin = copy.deepcopy(model)
        train(exactly(model), model, [(x, y)])
        other = exactly(twin)
        for part in (slice(0, 4), slice(4, 12)):
            share = len(x[part]) / len(x)
            (share * F.cross_entropy(twin(x[part]), y[part])).backward()
        other.step()
        torch.testing.assert_close(snapshot(model), snapshot(twin), **TIGHT)

    def test_observing_is_as_good_as_a_likelihood(self, batches):
        model = mlp()
        twin = copy.deepcopy(model)
        train(exactly(model), model, batches)
        often = {"statistics_interval": 1, "inverse_interval": 1}
        other = KFAC(twin, fisher="exact", kl_clip=math.inf, momentum=0.0, **often)
        body = twin[:-1]  # the model itself is never called
        for x, y in batches:
            other.zero_grad()
            logits = twin[-1](body(x))
            other.observe(Categorical(logits=logits))
            F.cross_entropy(logits, y).backward()
            other.step()
        torch.testing.assert_close(snapshot(model), snapshot(twin), **TIGHT)

    @pytest.mark.parametrize("clip", [1e-5, math.inf])
    def test_the_empirical_fisher_of_means_and_sums(self, clip, batches):
        """F̂ is the same; g is N-fold, which the clip takes away again."""
        moved = []
        for reduction in ("mean", "sum"):
            torch.manual_seed(1)
            model = mlp()
            before = snapshot(model)
            optimizer = KFAC(
                model, fisher="empirical", reduction=reduction, kl_clip=clip, momentum=0.0
            )
            x, y = batches[0]
            F.cross_entropy(model(x), y, reduction=reduction).backward()
            optimizer.step()
            moved.append(snapshot(model) - before)
        factor = 1 if clip < 1 else 12
        torch.testing.assert_close(factor * moved[0], moved[1], **TIGHT)


class TestSchedules:
    def test_a_rate_of_zero_is_a_rate(self, batches):
        """Warm-ups begin with it, and cosines end with it."""
        model = mlp()
        optimizer = exactly(model, lr=0.5)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: float(k > 0))
        start = snapshot(model)
        train(optimizer, model, batches[:1])
        assert torch.equal(snapshot(model), start)
        schedule.step()
        train(optimizer, model, batches[:1])
        assert not torch.equal(snapshot(model), start)

    def test_several_schedules(self, batches):
        model = mlp()
        twin = copy.deepcopy(model)
        optimizer = exactly(model, lr=0.5)
        oracle = DenseKFAC(twin, [0.5] * 6)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(batches))
        for i, (x, y) in enumerate(batches):
            rate = 0.25 * (1 + math.cos(math.pi * i / len(batches)))
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
            oracle.lr = [rate] * 6
            train(optimizer, model, [(x, y)])
            schedule.step()
            oracle.step(x, y)
        torch.testing.assert_close(snapshot(model), snapshot(twin), **TIGHT)

    def test_one_cycle_drives_momentum_too(self, batches):
        model = mlp()
        optimizer = exactly(model, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=20)
        for batch in batches:
            train(optimizer, model, [batch])
            schedule.step()
        assert optimizer.param_groups[0]["momentum"] < 0.95


def test_without_momentum_the_last_step_is_forgotten(batches):
    """A velocity from before would come back as a push when momentum does."""
    model = mlp()
    optimizer = exactly(model, momentum=0.9)
    train(optimizer, model, batches[:1])
    assert all("velocity" in optimizer.state[p] for p in model.parameters())
    optimizer.param_groups[0]["momentum"] = 0.0
    train(optimizer, model, batches[:1])
    assert not any(optimizer.state.values())
