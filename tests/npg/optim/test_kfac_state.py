"""What K-FAC saves, and how it goes on from it."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn import functional as F

from npg.errors import ConfigurationError
from npg.optim import EKFAC, KFAC
from npg.steps import LevenbergMarquardt
from tests.npg.optim.helpers import objective, snapshot
from tests.npg.oracles import mlp
from tests.pairs import pairs


class Mixed(nn.Module):
    """A layer of each kind, and free parameters, large and small."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(2, 4, 2, groups=2)
        self.norm = nn.LayerNorm(8)
        self.embedding = nn.Embedding(4, 3)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(11, 3)
        self.shift = nn.Parameter(torch.zeros(3))
        self.scale = nn.Parameter(torch.ones(40))

    def forward(self, x):
        features = self.norm(torch.tanh(self.convolution(x)).flatten(1))
        index = (4 * x[:, 0, 0].sigmoid()).long()
        joined = torch.cat([features, self.embedding(index)], 1)
        return self.head(self.dropout(joined)) * self.scale.mean() + self.shift


PHASES = {"statistics_interval": 2, "inverse_interval": 3, "statistics_decay": 0.7}
# Options, and whether steps get a forward-only closure.
KINDS = {
    "sampled": ({}, False),
    "exact": ({"fisher": "exact"}, False),
    "empirical": ({"fisher": "empirical"}, False),
    "reduce": ({"sharing": "reduce"}, False),
    "out of phase": (PHASES, False),
    "ekfac": ({"eigenbasis": True, **PHASES}, False),
    "narrow": ({"inverse_dtype": torch.bfloat16, **PHASES}, False),
    "burn-in": ({"burn_in": 5, **PHASES}, False),
    "decoupled": ({"weight_decay": 0.1, "decoupled_weight_decay": True}, False),
    "closure": (PHASES, True),
    "closure ekfac": ({"eigenbasis": True, **PHASES}, True),
    "closure of fixed momentum": ({"momentum": 0.8, "damping": LevenbergMarquardt(0.1)}, True),
    "closure of fixed damping": ({"momentum": "quadratic", "damping": 0.1}, True),
}


@pytest.fixture
def data():
    return torch.randn(10, 2, 3), torch.randint(3, (10,))


def make(model, kind, **options):
    settings, _ = KINDS[kind]
    return KFAC(
        model,
        likelihood="categorical",
        **{"seed": 4, "statistics_interval": 1, **settings, **options},
    )


def train(optimizer, model, data, kind, steps):
    torch.manual_seed(int(optimizer.extra["steps"]))  # for dropout
    for _ in range(steps):
        if KINDS[kind][1]:
            optimizer.step(objective(model, *data))
            continue
        optimizer.zero_grad()
        F.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()


class TestResuming:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("steps", [1, 4])
    def test_is_bit_for_bit(self, kind, steps, data):
        """Through a file that holds nothing but tensors and numbers, into other objects."""
        model = Mixed()
        optimizer = make(model, kind)
        train(optimizer, model, data, kind, steps)
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict()], file)
        train(optimizer, model, data, kind, 6)

        other = Mixed()
        resumed = make(other, kind, seed=99)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        other.load_state_dict(weights)
        resumed.load_state_dict(state)
        train(resumed, other, data, kind, 6)
        assert torch.equal(snapshot(model), snapshot(other))
        assert repr(optimizer.state_dict()) == repr(resumed.state_dict())

    def test_what_was_counted_before_is_forgotten(self, data):
        """Also what is counted on the device, and what no step of the saved run ever met."""
        model = Mixed()
        saved = make(model, "sampled")
        train(saved, model, data, "sampled", 2)
        other = Mixed()
        optimizer = make(other, "sampled")
        train(optimizer, other, data, "sampled", 1)
        for p in other.parameters():
            p.grad = torch.full_like(p, math.nan)
        optimizer.step()
        assert (optimizer.skipped, optimizer.extra["uncaptured"]) == (1, 1)
        optimizer.load_state_dict(saved.state_dict())
        assert (optimizer.skipped, optimizer.extra["uncaptured"]) == (0, 0)

    def test_statistics_under_way_are_dropped(self, data):
        """A backward pass before the loading belongs to another run."""
        model = Mixed()
        saved = make(model, "exact", inverse_interval=1)
        train(saved, model, data, "exact", 2)
        state = copy.deepcopy(saved.state_dict())
        expected = copy.deepcopy((model, saved))
        F.cross_entropy(model(3 * data[0]), data[1]).backward()
        saved.load_state_dict(state)
        train(saved, model, data, "exact", 1)
        train(expected[1], expected[0], data, "exact", 1)
        assert torch.equal(snapshot(model), snapshot(expected[0]))

    def test_double_precision_factors_survive(self):
        """torch casts what is in state[p] to the parameter's type."""
        model = mlp().float()
        optimizer = KFAC(model, likelihood="categorical")
        objective(model, torch.randn(9, 3).float(), torch.randint(3, (9,)))()[0].backward()
        optimizer.step()
        for block in optimizer.fisher.blocks:
            block.moments = [m.double() + 1e-12 for m in block.moments]
        kept = [m for block in optimizer.fisher.blocks for m in block.moments]
        other = KFAC(mlp().float(), likelihood="categorical")
        other.load_state_dict(optimizer.state_dict())
        found = [m for block in other.fisher.blocks for m in block.moments]
        assert all(m.dtype == torch.float64 for m in found)
        assert all(torch.equal(a, b) for a, b in zip(kept, found, strict=True))

    def test_a_saved_state_does_not_change(self, data):
        for kind in ("sampled", "ekfac"):
            model = Mixed()
            optimizer = make(model, kind)
            train(optimizer, model, data, kind, 1)
            own = optimizer.state_dict()["kfac"]["preconditioner"]
            before = repr(own)
            train(optimizer, model, data, kind, 6)
            assert repr(own) == before


class TestWrongStates:
    def _states(self, data):
        model = Mixed()
        optimizer = make(model, "sampled")
        train(optimizer, model, data, "sampled", 2)
        return model, optimizer

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ("torch's", "not K-FAC's"),
            ("ekfac", "eigenbasis= must be as they were"),
            ("wider", r"block 0 of it has matrices of shape .*here they are"),
            ("deeper", "parameter group that doesn't match|blocks"),
            ("sharing", None),
        ],
    )
    def test_are_refused_whole(self, wrong, message, data):
        """Nothing is half-loaded."""
        x, y = torch.randn(9, 3), torch.randint(3, (9,))
        model = mlp()
        optimizer = KFAC(model, likelihood="categorical")
        optimizer.step(objective(model, x, y))
        other = {
            "wider": lambda: nn.Sequential(
                nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 3)
            ),
            "deeper": lambda: nn.Sequential(mlp(), mlp()),
        }.get(wrong, mlp)()
        made = {
            "torch's": lambda: torch.optim.SGD(other.parameters(), momentum=0.9),
            "ekfac": lambda: EKFAC(other, likelihood="categorical"),
        }.get(wrong, lambda: KFAC(other, likelihood="categorical", lr=0.3))()
        for p in other.parameters():
            p.grad = torch.ones_like(p)
        if wrong == "torch's":
            made.step()
        else:
            made.step(objective(other, x, y))
        before = repr(optimizer.state_dict())
        if message is None:
            optimizer.load_state_dict(made.state_dict())
            assert optimizer.param_groups[0]["lr"] == 0.3
            return
        with pytest.raises((ConfigurationError, ValueError), match=message):
            optimizer.load_state_dict(made.state_dict())
        assert repr(optimizer.state_dict()) == before

    def test_velocities_of_other_shapes(self):
        """Where the moments were never measured, the velocity tells."""
        model = mlp()
        optimizer = KFAC(model, likelihood="categorical")
        state = optimizer.state_dict()
        state["state"] = {0: {"velocity": torch.zeros(7)}}
        with pytest.raises(ConfigurationError, match=r"parameter 0 of it has shape \(7,\)"):
            optimizer.load_state_dict(state)

    def test_a_state_of_other_blocks(self):
        model = mlp()
        whole = KFAC(model, likelihood="categorical").state_dict()
        tied = mlp()
        tied[2].bias.requires_grad_(False)  # one group of as many parameters, in other blocks
        tied.extra = nn.Parameter(torch.zeros(2))
        with pytest.raises(ConfigurationError, match="the state is of 3 blocks, this model has 4"):
            KFAC(tied, likelihood="categorical").load_state_dict(whole)


class TestCopies:
    @pytest.mark.parametrize(
        *pairs(
            how=["pickle", "deepcopy"],
            kind=["ekfac", "closure", "empirical", "burn-in"],
            steps=[3, 4],
        )
    )
    def test_go_on_alike(self, how, kind, steps, data):
        """Between two batches of statistics as well as at one."""
        model = Mixed()
        optimizer = make(model, kind)
        train(optimizer, model, data, kind, steps)
        pair = (model, optimizer)
        twin, other = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
        train(optimizer, model, data, kind, 4)
        train(other, twin, data, kind, 4)
        assert torch.equal(snapshot(model), snapshot(twin))


class TestGroups:
    def test_added_ones_begin_anew(self, data):
        model = Mixed()
        head = list(model.head.parameters())
        optimizer = make(model, "sampled", parameters=head, statistics_interval=5)
        train(optimizer, model, data, "sampled", 2)
        start = model.norm.weight.detach().clone()
        optimizer.add_param_group({"params": model.norm.parameters(), "lr": 0.5})
        assert not optimizer.preconditioner.ready
        train(optimizer, model, data, "sampled", 1)
        assert [block.updates for block in optimizer.fisher.blocks] == [1, 1]
        assert not torch.equal(model.norm.weight, start)
        assert optimizer.param_groups[1]["kl_clip"] is optimizer.param_groups[0]["kl_clip"]

    @pytest.mark.parametrize(
        "group",
        [{"lr": -1.0}, {"weight_decay": math.nan}, {"params": [nn.Parameter(torch.ones(2))]}],
    )
    def test_those_that_cannot_be_added_leave_no_trace(self, group, data):
        model = Mixed()
        optimizer = make(model, "sampled", parameters=model.head.parameters())
        with pytest.raises(ConfigurationError, match=r"lr must|decay must|parameters of the"):
            optimizer.add_param_group({"params": list(model.norm.parameters()), **group})
        assert len(optimizer.param_groups) == 1
        train(optimizer, model, data, "sampled", 2)

    def test_a_prediction_of_parts(self, data):
        """Two optimizers on one model, each with its own predictions, as actor and critic."""
        model = Mixed()
        both = [
            KFAC(model, parameters=model.head.parameters()),
            KFAC(model, parameters=model.norm.parameters()),
        ]
        start = snapshot(model)
        logits = model.forward(data[0])
        for optimizer in both:
            optimizer.observe(Categorical(logits=logits))
        F.cross_entropy(logits, data[1]).backward()
        for optimizer in both:
            optimizer.step()
        moved = [n for n, p in model.named_parameters() if p.requires_grad]
        changed = snapshot(model) != start
        assert {n.split(".")[0] for n in moved} >= {"head", "norm"}
        assert 0 < int(changed.sum()) <= 11 * 3 + 3 + 16
