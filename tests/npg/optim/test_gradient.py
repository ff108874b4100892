"""Optimizers that need gradients alone, against their recursions and against torch's own."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import (
    SOAP,
    AdamW,
    AdaX,
    AdaXW,
    GradientOptimizer,
    Langevin,
    Muon,
    MuonWithAdamW,
    NormalizedGradient,
    Shampoo,
    SignSGD,
)
from npg.optim.finite import masked, usable
from tests.npg.optim.helpers import snapshot
from tests.npg.oracles import TIGHT, mlp

OURS = {
    "adax": lambda p, **o: AdaX(p, lr=0.05, **o),
    "adaxw": lambda p, **o: AdaXW(p, lr=0.05, weight_decay=0.1, **o),
    "langevin": lambda p, **o: Langevin(p, lr=0.05, temperature=0.1, **o),
    "normalized-gradient": lambda p, **o: NormalizedGradient(p, lr=0.05, **o),
    "shampoo": lambda p, **o: Shampoo(
        p, lr=0.05, block_size=2, root_interval=2, decoupled_weight_decay=False, **o
    ),
    "sign-sgd": lambda p, **o: SignSGD(p, lr=0.05, **o),
    "soap": lambda p, **o: SOAP(p, lr=0.05, block_size=2, refresh_interval=2, **o),
}
SHAPES = [(), (3,), (2, 3), (2, 3, 2), (2, 1, 2, 1, 2), (0,), (2, 0)]


@pytest.fixture(params=OURS)
def make(request):
    return OURS[request.param]


def tensors():
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def drive(optimizer, parameters, steps=3, seed=0):
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=draws, dtype=p.dtype)
        optimizer.step()
    return [p.detach().clone() for p in parameters]


class TestContract:
    def test_tensors_of_any_order_one_by_one_or_together(self, make):
        parameters = tensors()
        twins = copy.deepcopy(parameters)
        together = drive(make(parameters), parameters)
        options = {} if make is OURS["normalized-gradient"] else {"foreach": False}
        alone = drive(make(twins, **options), twins)
        for a, b in zip(together, alone, strict=True):
            assert torch.equal(a, b)

    def test_maximising_is_minimising_the_negative(self, make):
        parameters = tensors()
        twins = copy.deepcopy(parameters)
        up, down = make(parameters, maximize=True), make(twins)
        for _ in range(3):
            for p, q in zip(parameters, twins, strict=True):
                p.grad = torch.randn(p.shape)
                q.grad = -p.grad
            up.step()
            down.step()
        for p, q in zip(parameters, twins, strict=True):
            assert torch.equal(p, q)

    def test_complex_numbers_are_pairs_of_real_ones(self, make):
        z = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))
        pairs = nn.Parameter(torch.view_as_real(z.detach()).clone())
        one, two = make([z]), make([pairs])
        for _ in range(3):
            z.grad = torch.randn(4, 3, dtype=torch.complex128)
            pairs.grad = torch.view_as_real(z.grad).clone()
            one.step()
            two.step()
        torch.testing.assert_close(torch.view_as_real(z.detach()), pairs.detach(), **TIGHT)

    def test_missing_and_zero_gradients(self, make):
        parameters = tensors()
        start = [p.detach().clone() for p in parameters]
        optimizer = make(parameters)
        optimizer.step()
        for p, before in zip(parameters, start, strict=True):
            assert torch.equal(p, before)
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert all(torch.isfinite(p).all() for p in parameters)
        if not isinstance(optimizer, (Langevin, AdaXW, SOAP)):
            for p, before in zip(parameters, start, strict=True):
                assert torch.equal(p, before)

    def test_parameters_that_join_later(self, make):
        """One that had no gradient at first counts its own steps."""
        first, late = (nn.Parameter(torch.randn(3)) for _ in range(2))
        optimizer = make([first, late])
        for i in range(3):
            first.grad = torch.randn(3)
            late.grad = torch.randn(3) if i else None
            optimizer.step()
        assert (optimizer.state[first]["step"], optimizer.state[late]["step"]) == (3, 2)

    def test_sparse_gradients_are_refused(self, make):
        table = nn.Embedding(5, 2, sparse=True)
        optimizer = make(table.parameters())
        table(torch.tensor([1, 2])).sum().backward()
        with pytest.raises(ConfigurationError, match="sparse=False"):
            optimizer.step()

    def test_nothing_is_read_from_the_device(self, make):
        model = nn.Linear(3, 2, device="meta")
        optimizer = make(model.parameters())
        for _ in range(2):
            model(torch.randn(4, 3, device="meta")).sum().backward()
            optimizer.step()

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_gradient_that_is_not_finite_is_sat_out(self, make, bad):
        """As if the parameter had had none, and counted; the others step."""
        parameters = [nn.Parameter(torch.randn(s)) for s in ((2, 3), (3,))]
        twins = copy.deepcopy(parameters)
        one, other = make(parameters), make(twins)
        for i in range(4):
            for p, q in zip(parameters, twins, strict=True):
                p.grad = torch.randn(p.shape)
                q.grad = p.grad.clone()
            if i in (0, 2):
                parameters[0].grad[1, 1] = bad
                twins[0].grad = None
            one.step()
            other.step()
        for p, q in zip(parameters, twins, strict=True):
            assert torch.equal(p, q)
        assert one.state[parameters[0]]["skipped"] == 2
        assert "skipped" not in one.state[parameters[1]]

    def test_a_closure_of_torchs_kind(self, make):
        model, x = mlp(), torch.randn(8, 3)
        optimizer = make(model.parameters())

        def closure():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        with torch.no_grad():
            assert float(optimizer.step(closure).detach()) > 0

    @pytest.mark.parametrize(
        "settings", [{"lr": -1.0}, {"lr": math.nan}, {"weight_decay": -0.1}, {"lr": math.inf}]
    )
    def test_bad_settings_are_named(self, make, settings):
        (name,) = settings
        with pytest.raises(ConfigurationError, match=f"{name} must be in"):
            type(make(tensors()))(tensors(), **settings)
        optimizer = make(tensors())
        optimizer.param_groups[0].update(settings)
        with pytest.raises(ConfigurationError, match=f"{name} must be in"):
            optimizer.step()

    def test_an_l2_term(self, make):
        if make in (OURS["adaxw"], OURS["soap"]):
            pytest.skip("its decay is decoupled")
        p, q = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
        one, two = make([p], weight_decay=0.3), make([q])
        for _ in range(3):
            p.grad = torch.randn(2)
            q.grad = p.grad + 0.3 * p.detach()
            one.step()
            two.step()
        torch.testing.assert_close(p.detach(), q.detach(), **TIGHT)


def test_a_subclass_says_what_it_does():
    parameters = tensors()
    optimizer = GradientOptimizer(parameters, {"lr": 0.1})
    with pytest.raises(NotImplementedError):
        drive(optimizer, parameters)


def test_huge_gradients_are_finite():
    """Their norm is not, in their precision; complex numbers come as pairs."""
    huge, bad = torch.full((2, 2), 1e30, dtype=torch.float32), torch.tensor([1.0, math.inf])
    states = [{}, {}, {}]
    given = [huge, bad, torch.zeros(0)]
    assert usable(given, states, squares=False) == [True, False, True]
    assert states == [{}, {"skipped": 1}, {}]
    assert usable(given, [{}, {}, {}]) == [False, False, True], "1e60 would stay in an average"
    half = torch.full((100,), 1e4, dtype=torch.float16)
    assert usable([half], [{}]) == [True], "only the sum of the squares overflows float16"


def test_what_is_masked_counts_as_zero():
    state = {}
    good = torch.randn(2, 3)
    assert torch.equal(masked(good, state), good)
    assert torch.equal(masked(good / 0, state), torch.zeros(2, 3))
    assert torch.equal(masked(good * math.nan, state), torch.zeros(2, 3))
    assert int(state["skipped"]) == 2


class TestMuon:
    def test_each_part_does_as_torch_does(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 5), nn.Linear(5, 3))
        twin = copy.deepcopy(model)
        joined = MuonWithAdamW(model, lr=0.01, weight_decay=0.1)
        muon = Muon(
            [twin[2].weight, twin[3].weight],
            lr=0.01,
            weight_decay=0.1,
            adjust_lr_fn="match_rms_adamw",
        )
        adamw = AdamW([twin[0].weight, twin[2].bias, twin[3].bias], lr=0.01, weight_decay=0.1)
        x, y = torch.randint(7, (9, 2)), torch.randint(3, (9,))
        for rate in (0.01, 0.003, 0.001):
            for group in (*joined.param_groups, *muon.param_groups, *adamw.param_groups):
                group["lr"] = rate
            for net, optimizers in ((model, [joined]), (twin, [muon, adamw])):
                net.zero_grad()
                F.cross_entropy(net(x), y).backward()
                for optimizer in optimizers:
                    optimizer.step()
        assert torch.equal(snapshot(model), snapshot(twin))

    @pytest.mark.parametrize("shapes", [[(3, 2)], [(3,)]])
    def test_matrices_alone_and_none(self, shapes):
        parameters = [nn.Parameter(torch.randn(s)) for s in shapes]
        start = parameters[0].detach().clone()
        drive(MuonWithAdamW(parameters), parameters, 1)
        assert not torch.equal(parameters[0], start)

    def test_groups_are_refused(self):
        with pytest.raises(ConfigurationError, match="not groups"):
            MuonWithAdamW([{"params": mlp().parameters()}])
