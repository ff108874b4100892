"""What every optimizer of the library promises."""

import copy
import gc
import io
import pickle
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import FunctionOptimizer, create, names, takes, train_step
from npg.optim.line_search import LineSearchOptimizer
from tests.npg.optim.helpers import snapshot
from tests.npg.oracles import flat, mlp

# What a name needs beyond its defaults to train a classifier from logits, in few steps.
SETTINGS = {
    "ekfac": {"likelihood": "categorical"},
    "gauss-newton": {"radius": 1.0},
    "kfac": {"likelihood": "categorical"},
    "natural-gradient": {"likelihood": "categorical"},
    "adafactor": {"lr": 0.1},
    "adahessian": {"lr": 0.1},
    "full-matrix-adagrad": {"lr": 0.3},
    "sophia-g": {"likelihood": "categorical", "lr": 0.02},
    "sophia-h": {"lr": 0.02},
    "adagrad": {"lr": 0.1},
    "adam": {"lr": 0.03},
    "adamax": {"lr": 0.03},
    "adamw": {"lr": 0.03},
    "adax": {"lr": 0.03},
    "adaxw": {"lr": 0.03},
    "langevin": {"lr": 2.0, "temperature": 1e-18},
    "loss-flow": {"lr": 0.03},
    "muon": {"lr": 0.1},
    "nadam": {"lr": 0.03},
    "normalized-gradient": {"lr": 0.1},
    "radam": {"lr": 0.3},
    "rmsprop": {"lr": 0.02},
    "sgd": {"lr": 0.2},
    "shampoo": {"lr": 0.03},
    "sign-sgd": {"lr": 0.02},
    "soap": {"lr": 0.03},
}
OF_TORCH = {
    "adafactor": torch.optim.Adafactor,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
VARIANTS = [
    *((name, SETTINGS.get(name, {})) for name in names()),
    ("kfac", {"likelihood": "categorical", "damping": 0.01, "momentum": 0.9, "kl_clip": 0.1}),
    ("shampoo", {"lr": 0.03, "graft": "rmsprop", "block_size": 2, "start_step": 3}),
    ("kfac", {"fisher": "empirical", "damping": 0.01, "statistics_interval": 3}),
    ("kbfgs", {"memory": 3, "momentum": 0.0}),
    ("natural-gradient", {"likelihood": "categorical", "fisher": "sampled", "seed": 3}),
    ("natural-gradient", {"likelihood": "categorical", "curvature": "fisher-dense"}),
    ("natural-gradient", {"likelihood": "categorical", "curvature": "kfac"}),
    ("natural-gradient", {"likelihood": "categorical", "cg_preconditioner": "kfac"}),
    ("newton-cg", {"matrix": "hessian"}),
    ("newton-cg", {"matrix": "fisher", "likelihood": "categorical"}),
    ("newton-cg", {"likelihood": "categorical", "cg_preconditioner": "kfac"}),
]


def listens(variant):
    """Whether it hears layers, and so must be given the module."""
    name, settings = variant
    return "kfac" in (name, *settings.values()) or name in ("ekfac", "kbfgs", "sophia-g")


def described(variant):
    return " ".join([variant[0], *map(str, variant[1].values())])


@pytest.fixture(params=VARIANTS, ids=described)
def variant(request):
    return request.param


@pytest.fixture(params=[v for v in VARIANTS if v[0] not in OF_TORCH], ids=described)
def own_variant(request):
    """An optimizer of this library, which says how it is driven."""
    return request.param


@pytest.fixture
def data():
    return torch.randn(40, 3), torch.randint(3, (40,))


def forward(model, x, y):
    def closure():
        logits = model(x)
        return F.cross_entropy(logits, y), logits

    return closure


def make(variant, model, **options):
    name, settings = variant
    return create(name, model, **{**settings, **options})


def evaluates(variant):
    """Whether it drives the objective itself, and counts what became of its steps."""
    return isinstance(make(variant, mlp()), FunctionOptimizer)


@pytest.fixture(
    params=[v for v in VARIANTS if v[0] not in OF_TORCH and evaluates(v)], ids=described
)
def counting_variant(request):
    return request.param


def train(optimizer, model, data, steps):
    return [train_step(optimizer, forward(model, *data)) for _ in range(steps)]


class TestTraining:
    def test_the_loss_falls(self, variant, data):
        model = mlp()
        losses = train(make(variant, model), model, data, 20)
        assert losses[-1] < 0.9 * losses[0]

    def test_the_loss_returned_is_that_before_the_step(self, variant, data):
        model = mlp()
        before = float(forward(model, *data)()[0])
        assert train(make(variant, model), model, data, 1) == [pytest.approx(before, rel=1e-12)]

    def test_is_deterministic(self, variant, data):
        model = mlp()
        twin = copy.deepcopy(model)
        train(make(variant, model), model, data, 4)
        torch.randn(5)  # the global generator does not matter
        train(make(variant, twin), twin, data, 4)
        assert torch.equal(snapshot(model), snapshot(twin))

    def test_float32(self, variant, data):
        model = mlp().float()
        x, y = data
        losses = train(make(variant, model), model, (x.float(), y), 10)
        assert losses[-1] < losses[0]
        assert {p.dtype for p in model.parameters()} == {torch.float32}

    @pytest.mark.parametrize("frozen", ["0.weight", "2.bias", "4.weight"])
    def test_frozen_and_unused_parameters_stay(self, variant, data, frozen):
        model = mlp()
        model.idle = nn.Identity()
        model.idle.weight = nn.Parameter(torch.ones(2))
        model.get_parameter(frozen).requires_grad_(False)
        kept = model.get_parameter(frozen).clone()
        losses = train(make(variant, model), model, data, 5)
        assert losses[-1] < losses[0]
        assert torch.equal(model.get_parameter(frozen), kept)
        assert torch.equal(model.idle.weight, torch.ones(2))

    def test_a_parameter_frozen_later_stays(self, variant, data):
        model = mlp()
        optimizer = make(variant, model)
        train(optimizer, model, data, 1)
        model[0].weight.requires_grad_(False)
        kept = model[0].weight.clone()
        losses = train(optimizer, model, data, 3)
        assert losses[-1] < losses[0]
        assert torch.equal(model[0].weight, kept)

    def test_a_scalar_parameter_and_a_three_dimensional_input(self, variant, data):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.tensor(1.0))
                self.body = mlp()

            def forward(self, x):
                return self.scale * self.body(x).mean(1)

        model, (x, y) = Scaled(), data
        losses = train(make(variant, model), model, (x.unsqueeze(1).repeat(1, 2, 1), y), 5)
        assert losses[-1] < losses[0]
        assert float(model.scale) != 1.0

    def test_moves_are_seen_by_version_counters(self, variant, data):
        model = mlp()
        versions = [p._version for p in model.parameters()]
        train(make(variant, model), model, data, 2)  # SOAP's first step gathers only
        assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))


class TestGroups:
    def test_every_group_has_a_rate(self, variant):
        optimizer = make(variant, mlp(), lr=0.25)
        assert {group["lr"] for group in optimizer.param_groups} == {0.25}

    def test_a_scheduler_drives_the_rate(self, variant, data):
        model = mlp()
        optimizer = make(variant, model, lr=0.5)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.1)
        used = []
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns where step was not seen
            for _ in range(3):
                used.append(optimizer.param_groups[0]["lr"])
                train(optimizer, model, data, 1)
                scheduler.step()
        assert used == pytest.approx([0.5, 0.05, 0.005])

    def test_the_rate_matters(self, variant, data):
        moved = []
        for lr in (1e-2, 1e-3):
            torch.manual_seed(0)
            model = mlp()
            start = snapshot(model)
            searches = isinstance(make(variant, mlp()), LineSearchOptimizer)
            options = {"line_search": None} if searches else {}  # which would find its own length
            train(make(variant, model, lr=lr, **options), model, data, 1)
            moved.append(float((snapshot(model) - start).norm()))
        assert moved[0] == pytest.approx(10 * moved[1], rel=1e-6)

    def test_groups_can_be_added(self, variant, data):
        if variant[0] == "muon":
            with pytest.raises(ConfigurationError, match="make a new one"):
                make(variant, mlp()).add_param_group({"params": mlp().parameters()})
            return
        model = mlp()
        last = list(model[4].parameters())
        optimizer = (
            make(variant, model, parameters=last) if listens(variant) else make(variant, last)
        )
        start = snapshot(model)
        train(optimizer, model, data, 2)
        assert torch.equal(snapshot(model)[:41], start[:41])
        optimizer.add_param_group({"params": model[0].parameters()})
        train(optimizer, model, data, 2)
        assert not torch.equal(snapshot(model)[:16], start[:16])
        assert torch.equal(snapshot(model)[16:41], start[16:41])

    def test_part_of_a_module(self, variant, data):
        model = mlp()
        start = snapshot(model)
        model[0].weight.requires_grad_(False)  # a frozen one among them is left out
        train(make(variant, model, parameters=model[0].parameters()), model, data, 2)
        moved = snapshot(model) != start
        assert bool(moved[12:16].all())
        assert not moved[:12].any()
        assert not moved[16:].any()

    def test_nothing_to_train_or_foreign_parameters(self, variant):
        model = mlp()
        foreign = [mlp()[0].weight, model[0].weight]
        with pytest.raises(ConfigurationError, match="among the model's"):
            make(variant, model, parameters=foreign)
        with pytest.raises(ConfigurationError, match=r"restricts a module|must be the module"):
            make(variant, list(model.parameters()), parameters=model.parameters())
        model.requires_grad_(False)
        with pytest.raises(ConfigurationError, match="require a gradient"):
            make(variant, model)

    def test_hooks_are_called(self, variant, data):
        model = mlp()
        optimizer = make(variant, model)
        seen = []
        optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
        optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        train(optimizer, model, data, 2)
        assert seen == ["before", "after"] * 2


class TestState:
    def test_resuming_is_bit_for_bit(self, variant, data):
        """Interrupted after three steps, through a file, into differently seeded objects."""
        model = mlp()
        optimizer = make(variant, model, lr=0.7)
        train(optimizer, model, data, 3)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        losses = train(optimizer, model, data, 4)

        other = mlp()
        seed = {"seed": 99} if "seed" in variant[1] else {}
        resumed = make(variant, other, **seed)
        train(resumed, other, data, 1)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other.load_state_dict(saved["model"])
        resumed.load_state_dict(saved["optimizer"])
        assert resumed.param_groups[0]["lr"] == 0.7
        assert train(resumed, other, data, 4) == losses
        assert torch.equal(snapshot(model), snapshot(other))
        assert repr(resumed.state_dict()) == repr(optimizer.state_dict())

    def test_counters_are_not_cast_to_the_parameters_dtype(self, counting_variant, data):
        model = mlp().half().float()  # float32 parameters
        optimizer = make(counting_variant, model)
        train(optimizer, model, (data[0].float(), data[1]), 1)
        optimizer.extra["steps"] = 2**24 + 1  # no float32 is this number
        state = optimizer.state_dict()
        other = make(counting_variant, mlp().float())
        other.load_state_dict(state)
        assert other.extra["steps"] == 2**24 + 1
        assert type(other.extra["steps"]) is int

    def test_loading_leaves_the_dictionary_alone(self, own_variant, data):
        """torch's own move the tensors of the dictionary they were given."""
        model = mlp()
        optimizer = make(own_variant, model)
        train(optimizer, model, data, 1)
        state = optimizer.state_dict()
        before = repr(state)
        optimizer.load_state_dict(state)
        train(optimizer, model, data, 2)
        assert repr(state) == before

    def test_counts_steps(self, counting_variant, data):
        model = mlp()
        optimizer = make(counting_variant, model)
        train(optimizer, model, data, 3)
        assert optimizer.state_dict()["npg"]["steps"] == 3

    @pytest.mark.parametrize("scheduled", [False, True])
    @pytest.mark.parametrize("how", ["pickle", "deepcopy"])
    def test_copies_continue_alike_and_apart(self, variant, data, how, scheduled):
        model = mlp()
        optimizer = make(variant, model)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 100) if scheduled else None
        train(optimizer, model, data, 2)
        pair = (model, optimizer)
        copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
        twin, other = copied
        kept = snapshot(model)
        losses = train(other, twin, data, 3)
        assert torch.equal(snapshot(model), kept), "the copy moves the copy only"
        assert not torch.equal(snapshot(twin), kept)
        assert train(optimizer, model, data, 3) == losses
        assert torch.equal(snapshot(twin), snapshot(model))
        seen = []
        other.register_step_pre_hook(lambda *_: seen.append(1))
        train(other, twin, data, 1)
        assert seen == [1]
        other.zero_grad()
        del scheduler

    @pytest.mark.parametrize("how", ["pickle", "deepcopy"])
    def test_a_copy_goes_on_counting(self, counting_variant, data, how):
        model = mlp()
        optimizer = make(counting_variant, model)
        train(optimizer, model, data, 2)
        pair = (model, optimizer)
        copied = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
        train(copied[1], copied[0], data, 4)
        assert copied[1].state_dict()["npg"]["steps"] == 6
        assert optimizer.state_dict()["npg"]["steps"] == 2

    def test_a_copied_model_has_no_ghost(self, variant, data):
        """An optimizer leaves nothing on the module that a copy of the module would drag along."""
        model = mlp()
        optimizer = make(variant, model)
        train(optimizer, model, data, 1)
        ghost = weakref.ref(optimizer)
        twin = copy.deepcopy(model)
        del optimizer
        gc.collect()
        assert ghost() is None
        twin(data[0])  # a hook that was copied leaves when it finds nobody to tell
        for module in (*model.modules(), *twin.modules()):
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert not module._backward_hooks
        assert all(not p._backward_hooks for p in twin.parameters())
        F.cross_entropy(twin(data[0]), data[1]).backward()


class TestRegistry:
    def test_names(self):
        assert names() == sorted(names())
        assert {"natural-gradient", "newton-cg"} <= set(names())

    def test_options_and_rate_are_handed_on(self):
        optimizer = create("natural-gradient", mlp(), 0.5, damping=0.25)
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert optimizer.param_groups[0]["damping"] == 0.25
        assert create("natural-gradient", mlp()).param_groups[0]["lr"] == 1.0

    def test_unknown_names_and_options(self):
        with pytest.raises(ConfigurationError, match=r"'adamm'; there are adafactor, "):
            create("adamm", mlp())
        with pytest.raises(TypeError, match="momentum"):
            create("newton-cg", mlp(), momentum=0.9)

    def test_torchs_own_are_torchs_own(self):
        for name, kind in OF_TORCH.items():
            assert type(create(name, mlp())) is kind
        assert create("adam", mlp()).param_groups[0]["lr"] == 1e-3
        group = create("sgd", mlp(), nesterov=True).param_groups[0]
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.05, 0.9, True)
        assert create("sgd", mlp(), 0.5, momentum=0.0).param_groups[0]["momentum"] == 0.0

    def test_what_a_constructor_takes(self):
        assert takes("natural-gradient", "likelihood")
        assert takes("newton-cg", "likelihood")
        assert not takes("adahessian", "likelihood")
        assert not takes("adam", "likelihood")
        with pytest.raises(ConfigurationError, match="no optimizer is named 'adamm'"):
            takes("adamm", "likelihood")

    def test_protocol_says_how_each_is_driven(self, own_variant):
        assert make(own_variant, mlp()).protocol in ("gradient", "function", "hessian")

    def test_train_step_drives_torchs_own(self, data):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        start, closure = snapshot(model), forward(model, *data)
        for _ in range(2):  # the second would see the first's gradient
            start = snapshot(model)
            loss, _ = closure()
            gradient = flat(torch.autograd.grad(loss, list(model.parameters())))
            assert train_step(optimizer, closure) == pytest.approx(float(loss.detach()))
            torch.testing.assert_close(snapshot(model), start - 0.1 * gradient)
