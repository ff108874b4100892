"""What the two searches share: another optimizer below, faults, and the way back."""

import copy
import functools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from npg.errors import ConfigurationError, NumericalError
from npg.linalg import split
from npg.optim import KFAC, LBFGS, EvolutionStrategies, MLEGuidedSearch, Shampoo, train_step
from tests.npg.optim.search_problems import classifier, guided_closure, parameters_of, wrong

SEARCHES = [
    pytest.param(functools.partial(MLEGuidedSearch, candidates=4), id="guided"),
    pytest.param(functools.partial(EvolutionStrategies, candidates=8), id="batched"),
    pytest.param(functools.partial(EvolutionStrategies, candidates=8, chunk_size=1), id="in place"),
]
each_search = pytest.mark.parametrize("make", SEARCHES)
BASES = [
    torch.optim.SGD,
    torch.optim.Adam,
    Shampoo,
    functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
]


def closure_for(optimizer, model, x, y, objective=wrong):
    def guided():
        logits = model(x)
        return nn.functional.cross_entropy(logits, y), objective(logits, y)

    guides = isinstance(optimizer, MLEGuidedSearch)
    return guided if guides else lambda: objective(model(x), y)


class TestBase:
    @each_search
    @pytest.mark.parametrize("base", BASES)
    def test_takes_minus_the_direction_for_a_gradient(self, make, base):
        model, x, y = classifier()
        recorded = copy.deepcopy(model)
        plain = make(recorded, lr=1.0)  # SGD at rate 1: its step is the direction
        start = parameters_of(model)
        plain.step(closure_for(plain, recorded, x, y))
        twin = copy.deepcopy(model)
        other = base(list(twin.parameters()), lr=0.03)
        direction = parameters_of(recorded) - start
        for p, piece in zip(
            twin.parameters(), split(-direction, list(twin.parameters())), strict=True
        ):
            p.grad = piece
        other.step()
        optimizer = make(model, lr=0.03, base=base)
        optimizer.step(closure_for(optimizer, model, x, y))
        torch.testing.assert_close(parameters_of(model), parameters_of(twin))

    @each_search
    def test_gradients_of_the_user_stay(self, make):
        model, x, y = classifier()
        model[0].weight.requires_grad_(False)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        kept = model[0].weight.clone()
        optimizer = make(model, parameters=[*model[2].parameters(), model[0].bias])
        optimizer.add_param_group({"params": [model[0].weight]})
        optimizer.step(closure_for(optimizer, model, x, y))
        assert all(bool((p.grad == 1).all()) for p in model.parameters())
        assert torch.equal(model[0].weight, kept)

    @each_search
    def test_shares_groups_and_state(self, make):
        model, x, y = classifier()
        optimizer = make(model, lr=0.1, base=torch.optim.Adam)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        optimizer.step(closure_for(optimizer, model, x, y))
        scheduler.step()
        assert optimizer.base.param_groups[0]["lr"] == 0.05
        assert "exp_avg" in optimizer.state[model[0].weight]
        assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)

    @each_search
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
    def test_a_copy_still_shares(self, make, copied):
        model, x, y = classifier()
        optimizer = make(model, base=torch.optim.Adam)
        optimizer.step(closure_for(optimizer, model, x, y))
        twin = copied(optimizer)
        assert twin.base.param_groups is twin.param_groups
        assert twin.base.state is twin.state

    @each_search
    @pytest.mark.parametrize("base", BASES)
    def test_resumes_bit_for_bit(self, make, base):
        model, x, y = classifier()
        optimizer = make(model, lr=0.02, base=base)
        for _ in range(3):
            optimizer.step(closure_for(optimizer, model, x, y))
        twin = copy.deepcopy(model)
        resumed = make(twin, lr=0.02, base=base, seed=9)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for one, net in ((optimizer, model), (resumed, twin)):
            for _ in range(3):
                one.step(closure_for(one, net, x, y))
        assert torch.equal(parameters_of(model), parameters_of(twin))
        assert resumed.base.param_groups is resumed.param_groups

    @each_search
    def test_a_state_of_another_optimizer_is_refused(self, make):
        model, *_ = classifier()
        with pytest.raises(ConfigurationError, match="another optimizer"):
            make(model).load_state_dict(torch.optim.SGD(model.parameters()).state_dict())
        other = EvolutionStrategies if make.func is MLEGuidedSearch else MLEGuidedSearch
        with pytest.raises(ConfigurationError, match=other.__name__):
            make(model).load_state_dict(other(model).state_dict())

    @each_search
    def test_a_state_over_another_base_is_refused(self, make):
        model, *_ = classifier()
        state = make(model, base=torch.optim.Adam).state_dict()
        with pytest.raises(ConfigurationError, match="over Adam"):
            make(model).load_state_dict(state)

    @each_search
    @pytest.mark.parametrize(
        "base",
        [LBFGS, torch.optim.LBFGS, EvolutionStrategies, lambda groups: None, "sgd"],
    )
    def test_a_base_that_needs_more_than_gradients_is_refused(self, make, base):
        with pytest.raises(ConfigurationError, match="base must make an optimizer"):
            make(classifier()[0], base=base)

    @each_search
    def test_a_base_that_needs_the_module_is_refused(self, make):
        with pytest.raises(ConfigurationError, match="module"):
            make(classifier()[0], base=KFAC)


class Sometimes:
    """An objective that is replaced at some evaluations."""

    def __init__(self, value, places):
        self.value, self.places, self.calls = value, places, 0

    def __call__(self, logits, y):
        self.calls += 1
        return self.value if self.calls - 1 in self.places else float(wrong(logits, y))


one_by_one = pytest.mark.parametrize("make", [SEARCHES[0], SEARCHES[2]])


class TestFaults:
    @one_by_one
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_candidates_that_are_not_finite_are_dropped_and_counted(self, make, value):
        model, x, y = classifier()
        optimizer = make(model, lr=0.1)
        report = optimizer.step(closure_for(optimizer, model, x, y, Sometimes(value, {1, 3})))
        assert report.accepted
        assert report.dropped == 2
        assert report.candidates == optimizer.candidates
        assert math.isfinite(report.best)
        assert bool(torch.isfinite(parameters_of(model)).all())

    @each_search
    def test_all_not_finite_skips_and_raises_at_the_third_in_a_row(self, make):
        model, x, y = classifier()
        start = parameters_of(model)
        optimizer = make(model)

        def nan(logits, y):
            return wrong(logits, y) * math.nan

        closure = closure_for(optimizer, model, x, y, nan)
        for _ in range(2):
            report = optimizer.step(closure)
            assert not report.accepted
            assert report.dropped == report.candidates
            assert "finite" in report.reason
        optimizer.step(closure_for(optimizer, model, x, y))  # begins to count again
        moved = parameters_of(model)
        assert not torch.equal(moved, start)
        for _ in range(2):
            optimizer.step(closure)
        with pytest.raises(NumericalError, match="3 steps in a row"):
            optimizer.step(closure)
        assert torch.equal(parameters_of(model), moved)
        assert optimizer.extra["skipped"] == 5

    @one_by_one
    def test_an_error_of_the_closure_leaves_the_parameters(self, make):
        model, x, y = classifier()
        start = parameters_of(model)
        optimizer = make(model)
        calls = []

        def fails(logits, y):
            calls.append(1)
            if len(calls) == 4:
                raise KeyError("data")
            return wrong(logits, y)

        with pytest.raises(KeyError, match="data"):
            optimizer.step(closure_for(optimizer, model, x, y, fails))
        assert torch.equal(parameters_of(model), start)

    @one_by_one
    @pytest.mark.parametrize(
        ("value", "told"),
        [
            (torch.zeros(3), r"shape \(3,\)"),
            (torch.zeros(1), r"shape \(1,\)"),
            ("none", "a str"),
            (None, "a NoneType"),
            (1j, "a complex"),
            (torch.tensor(1j), "a tensor"),
            (np.str_("1"), "a str_"),
        ],
    )
    def test_what_is_no_scalar_is_refused(self, make, value, told):
        model, x, y = classifier()
        optimizer = make(model)
        if isinstance(optimizer, MLEGuidedSearch) and value is None:
            pytest.skip("then the loss is the objective")
        with pytest.raises(ConfigurationError, match=told):
            optimizer.step(closure_for(optimizer, model, x, y, lambda *_: value))

    @each_search
    def test_no_closure_is_refused(self, make):
        with pytest.raises(ConfigurationError, match="closure must"):
            make(classifier()[0]).step()

    @each_search
    @pytest.mark.parametrize("scale", [1e30, 1e300, -1e300])
    def test_objectives_of_huge_scale(self, make, scale):
        model, x, y = classifier()
        optimizer = make(model)
        report = optimizer.step(
            closure_for(optimizer, model, x, y, lambda z, y: scale * wrong(z, y))
        )
        assert report.accepted
        assert bool(torch.isfinite(parameters_of(model)).all())

    @each_search
    def test_a_refused_direction_leaves_no_trace_in_the_base(self, make):
        # float16 ends at 65,504: a direction beyond that becomes infinite where the base sees it.
        model, x, y = classifier(torch.float16)
        options = {"shaping": "none"} if make.func is EvolutionStrategies else {}
        optimizer = make(
            model, lr=1e-3, base=functools.partial(torch.optim.SGD, momentum=0.9), **options
        )
        start = parameters_of(model)
        if make.func is EvolutionStrategies:
            huge = closure_for(optimizer, model, x, y, lambda z, y: 1e9 * wrong(z, y))
            report = optimizer.step(huge)
            assert not report.accepted
            assert "direction" in report.reason
            assert optimizer.extra["rejected"] == 1
            assert torch.equal(parameters_of(model), start)
            assert not optimizer.state
        assert optimizer.step(closure_for(optimizer, model, x, y)).accepted
        assert bool(torch.isfinite(parameters_of(model)).all())

    @each_search
    def test_float16_beside_bfloat16_comes_back(self, make):
        model, x, y = classifier(torch.float32)
        model[0].to(torch.float16)
        model[2].to(torch.bfloat16)
        with torch.no_grad():
            model[2].bias[0] = 1e20  # beyond float16
            model[0].bias[0] = 0.1  # not in bfloat16
        start = [p.clone() for p in model.parameters()]
        optimizer = make(model)

        def mixed(module, inputs):
            return (inputs[0].to(module.weight.dtype),)

        for layer in (model[0], model[2]):
            layer.register_forward_pre_hook(mixed)
        report = optimizer.step(
            closure_for(optimizer, model, x, y, lambda z, y: wrong(z, y) * math.nan)
        )
        assert not report.accepted
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start, strict=True))

    @each_search
    def test_nothing_to_move_is_told(self, make):
        model, x, y = classifier()
        optimizer = make(model)
        model.requires_grad_(False)
        with pytest.raises(ConfigurationError, match=r"requires_grad|scalar tensor with its graph"):
            optimizer.step(closure_for(optimizer, model, x, y))

    @each_search
    def test_a_step_out_of_the_finite_numbers_is_taken_back(self, make):
        model, x, y = classifier(torch.float32)
        start = parameters_of(model)
        far = {"sigma": 1e3} if make.func is MLEGuidedSearch else {}
        optimizer = make(model, lr=3e38, **far)
        report = optimizer.step(closure_for(optimizer, model, x, y))
        assert not report.accepted
        assert "finite" in report.reason
        assert torch.equal(parameters_of(model), start)

    @each_search
    @pytest.mark.parametrize("lr", [-1.0, math.inf, math.nan])
    def test_rates_that_cannot_work(self, make, lr):
        with pytest.raises((ConfigurationError, ValueError), match=r"lr|learning rate"):
            make(classifier()[0], lr=lr)

    @each_search
    @pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan, None])
    def test_noise_that_cannot_work(self, make, sigma):
        with pytest.raises(ConfigurationError, match="sigma must be positive"):
            make(classifier()[0], sigma=sigma)

    @each_search
    @pytest.mark.parametrize("candidates", [0, 1, -2, 1.5, None])
    def test_numbers_of_candidates_that_cannot_work(self, make, candidates):
        with pytest.raises(ConfigurationError, match="candidates must be"):
            make(classifier()[0], candidates=candidates)


@each_search
def test_train_step_hands_over_an_objective(make):
    model, x, y = classifier()
    optimizer = make(model, lr=0.3 if make.func is MLEGuidedSearch else 0.05)

    def forward():
        logits = model(x)
        return nn.functional.cross_entropy(logits, y), logits

    seen = []

    def objective(logits):
        seen.append(logits.requires_grad)
        return wrong(logits, y)

    before = float(wrong(model(x), y))
    for _ in range(30):
        train_step(optimizer, forward, objective)
    assert float(wrong(model(x), y)) < before
    assert seen


@each_search
def test_batches_and_dropout_see_the_same_conditions(make):
    model, x, y = classifier()
    model = nn.Sequential(model[0], nn.BatchNorm1d(6).double(), nn.Dropout(0.5), model[2])
    optimizer = make(model)
    twin = copy.deepcopy(model)
    torch.manual_seed(4)
    twin(x)
    after = torch.rand(3)
    torch.manual_seed(4)
    seen = []

    def objective(logits, y):
        seen.append(model[2].training)
        return wrong(logits, y)

    if isinstance(optimizer, EvolutionStrategies):
        optimizer.evaluator.batches = False  # vmap has no running statistics
    optimizer.step(closure_for(optimizer, model, x, y, objective))
    assert torch.equal(torch.rand(3), after)
    torch.testing.assert_close(dict(model[1].named_buffers()), dict(twin[1].named_buffers()))


def test_a_closure_that_goes_back_is_told():
    model, x, y = classifier()
    optimizer = MLEGuidedSearch(model)
    inner = guided_closure(model, x, y)

    def closure():
        loss, objective = inner()
        loss.backward(retain_graph=True)
        return loss, objective

    with pytest.raises(ConfigurationError, match="No backward"):
        optimizer.step(closure)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each_search
def test_on_a_gpu(make):
    model, x, y = classifier()
    model, x, y = model.cuda(), x.cuda(), y.cuda()
    optimizer = make(model, lr=0.05)
    start = parameters_of(model)
    for _ in range(3):
        report = optimizer.step(closure_for(optimizer, model, x, y))
        assert report.accepted
    assert optimizer.generator.device.type == "cuda"
    assert not torch.equal(parameters_of(model), start)
    assert bool(torch.isfinite(parameters_of(model)).all())
