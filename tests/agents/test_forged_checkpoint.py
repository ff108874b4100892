"""Our own files with a right seal, around what somebody liked to write."""

import copy
import io
import json
import zipfile

import pytest
import safetensors.torch
import torch

from agents import PPO, TRPO
from npg import checkpoints
from npg.checkpoints.archive import write_archive
from npg.errors import CheckpointError
from tests.agents.checkpoints import box_env
from tests.agents.helpers import small


@pytest.fixture(scope="module")
def members():
    """JSON and tensors of a trained agent's file."""
    file = io.BytesIO()
    small(TRPO, box_env()).learn(64).save(file)
    found = checkpoints.members_of(file.getvalue(), "it", {zipfile.ZIP_STORED}, growth=1)
    values, tensors = found.values()
    return json.loads(values), safetensors.torch.load(tensors)


def forged(members, change, change_tensors=lambda tensors: None) -> io.BytesIO:
    """A file in which something else stands."""
    values, tensors = copy.deepcopy(members)
    change(values["entries"])
    change_tensors(tensors)
    file = io.BytesIO()
    stored = [json.dumps(values).encode(), safetensors.torch.save(tensors)]
    write_archive(file, dict(zip(["values.json", "tensors.safetensors"], stored, strict=True)))
    file.seek(0)
    return file


def put(place: str, value):
    """A change of one value."""
    *way, last = place.split("/")

    def change(entries):
        for key in way:
            entries = entries[int(key) if isinstance(entries, list) else key]
        entries[int(last) if isinstance(entries, list) else last] = value

    return change


def test_what_is_forged_below_is_a_checkpoint(members):
    assert TRPO.load(forged(members, lambda entries: None), device="cpu").num_timesteps == 64


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("agent", [], "agent"),
        ("states", [], "states"),
        ("states", {}, "states"),
        ("states/environments", 3, "environments"),
        ("agent/policy_class", 5, "policy_class"),
        ("agent/policy_class", {"$class": "torch.nn:Linear"}, "policy_class"),
        ("agent/policy_class", "NoPolicy", "NoPolicy"),
        ("agent/policy_kwargs", [], "policy_kwargs"),
        ("agent/policy_kwargs", {"net_arch": 5}, "attribute"),
        ("agent/observation_space", 5, "observation_space"),
        ("agent/action_space", {"$box": [1]}, "action_space"),
        ("agent/gamma", "0.9", "gamma"),
        ("agent/gamma", [], "gamma"),
        ("agent/n_steps", {}, "n_steps"),
        ("agent/n_steps", 10**15, "attribute"),
        ("agent/critic", 3, "critic"),
        ("agent/train", 3, "train"),
        ("agent/predict", {"$class": "torch.nn:Linear"}, "predict"),
        ("agent/logger", 3, "logger"),
        ("agent/__class__", 3, "__class__"),
        ("agent/not a name", 3, "not a name"),
        ("states/policy", 3, r"states\.policy"),
        ("states/policy/$ordered/log_std", 3, r"states\.policy"),
        ("states/policy/metadata", 3, r"states\.policy"),
        ("states/os", {}, "os"),
        ("states/policy.optimizer/state", [], r"states\.policy\.optimizer"),
        ("states/policy.optimizer/param_groups/0/lr", "x", "lr"),
        ("states/training_optim_state", 3, "training_optim_state"),
        ("states/training_optim_state/optimizers", 3, "training_optim_state"),
        ("states/training_optim_state/normaliser", 3, "training_optim_state"),
        ("states/training_optim_state/generators/numpy/0", "PCG64", "NumPy"),
        ("states/training_optim_state/generators/numpy/2", 10**6, "NumPy"),
        ("states/training_optim_state/generators/numpy/2", -1, "NumPy"),
        ("states/training_optim_state/generators/numpy/1", 5, "NumPy"),
        ("states/training_optim_state/generators/numpy/4", "x", "NumPy"),
        ("states/training_optim_state/generators/torch", 5, "torch"),
    ],
)
def test_what_does_not_fit_is_named(members, place, value, named):
    with pytest.raises(CheckpointError, match=named):
        TRPO.load(forged(members, put(place, value)), device="cpu")


@pytest.mark.parametrize("entries", [3, [], None])
def test_a_file_without_entries(members, entries):
    file = io.BytesIO()
    values = json.dumps({"format": 1, "entries": entries}).encode()
    tensors = safetensors.torch.save({})
    write_archive(file, {"values.json": values, "tensors.safetensors": tensors})
    file.seek(0)
    with pytest.raises(CheckpointError):
        TRPO.load(file)


GENERATORS = "states.training_optim_state.generators."


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("states.policy.log_std", torch.zeros(7)),
        (GENERATORS + "numpy.1", torch.zeros(3, dtype=torch.int64)),
        (GENERATORS + "numpy.1", torch.full((624,), -1)),
        (GENERATORS + "python.1", torch.full((625,), 2**40)),
        (GENERATORS + "python.1", torch.full((625,), 10**6)),
        (GENERATORS + "torch", torch.zeros(5056, dtype=torch.uint8)),
        (GENERATORS + "torch", torch.full((5056,), 255, dtype=torch.uint8)),
        (GENERATORS + "torch", torch.zeros(7, dtype=torch.uint8)),
    ],
)
def test_tensors_that_do_not_fit_are_named(members, name, tensor):
    with pytest.raises(CheckpointError, match=r"policy|generators"):
        TRPO.load(forged(members, lambda e: None, lambda t: t.update({name: tensor})))


@pytest.mark.parametrize("shape", [(1,), (10**6,), (0,), (64, 3, 1)])
def test_moments_of_another_shape_are_refused(members, shape):
    """Adam's fused kernel would write past their end."""

    def change(tensors):
        (name, *_) = [n for n in tensors if n.endswith("exp_avg") and tensors[n].ndim == 2]
        tensors[name] = torch.zeros(shape)

    with pytest.raises(CheckpointError, match=r"states\.policy\.optimizer: exp_avg .* shape"):
        TRPO.load(forged(members, lambda entries: None, change), device="cpu")


def test_masks_have_two_truth_values():
    """safetensors does not look; masks of torch and NumPy count on it."""
    file = io.BytesIO()
    checkpoints.write(file, {"mask": torch.tensor([True, False, True])})
    found = checkpoints.members_of(file.getvalue(), "it", {zipfile.ZIP_STORED}, growth=1)
    found["tensors.safetensors"] = found["tensors.safetensors"][:-3] + b"\x07\x00\x80"
    file = io.BytesIO()
    write_archive(file, found)
    file.seek(0)
    mask = checkpoints.read(file)["mask"]
    assert mask.view(torch.uint8).tolist() == [1, 0, 1]


def test_set_parameters_checks_a_file_too(members, tmp_path):
    path = tmp_path / "forged.zip"
    path.write_bytes(forged(members, put("states/policy", 3)).getvalue())
    with pytest.raises(CheckpointError, match=r"states\.policy"):
        small(TRPO, box_env()).set_parameters(path)


def test_a_file_of_another_policy_is_named(tmp_path):
    PPO("MlpPolicy", box_env(), policy_kwargs={"net_arch": [8]}).save(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"(?s)states\.policy does not fit: .*size mismatch"):
        PPO("MlpPolicy", box_env()).set_parameters(tmp_path / "other")
