"""What is installed, and what the sources may do with files that came from elsewhere."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unsafe_calls import unsafe

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    file for top in ("npg", "agents", "envs", "scripts") for file in (ROOT / top).rglob("*.py")
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = (ROOT / "constraints.txt").read_text().splitlines()
PINS = [line for line in LINES if line and not line.startswith("#")]

# Everything that may do it, and why.
EXEMPT = {
    ("npg/checkpoints/values.py", "pickle.loads"): "reached with trust=True only",
    ("agents/peer_checkpoint.py", "cloudpickle.loads"): "reached with trust=True only",
}


def requirements() -> list[Requirement]:
    """What pyproject.toml asks for, with every extra."""
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return [Requirement(line) for line in lines]


def pinned() -> dict[str, str]:
    return {canonicalize_name(name): version for name, version in (p.split("==") for p in PINS)}


# ------------------------------------------------------------------------------------- the sources


def test_nothing_runs_what_came_with_data():
    assert len(SOURCES) > 200
    found = {
        (str(file.relative_to(ROOT)), name): line
        for file in SOURCES
        for line, name in unsafe(file.read_text())
    }
    new = [
        f"{file}:{line}: {name}"
        for (file, name), line in found.items()
        if (file, name) not in EXEMPT
    ]
    assert not new, "read data without running it, or say in EXEMPT why it must be"
    assert not EXEMPT.keys() - found.keys(), "exempt, and not there any more"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("eval('1')", "builtins.eval"),
        ("run = exec", "builtins.exec"),
        ("import builtins\nbuiltins.eval('1')", "builtins.eval"),
        ("import pickle\npickle.loads(b'')", "pickle.loads"),
        ("import pickle as p\np.load(file)", "pickle.load"),
        ("from pickle import loads as x\nx(b'')", "pickle.loads"),
        ("import pickle\nread = pickle.loads", "pickle.loads"),
        ("import pickle\nmap(pickle.loads, files)", "pickle.loads"),
        ("import pickle\nclass Mine(pickle.Unpickler): ...", "pickle.Unpickler"),
        ("def read():\n    from pickle import load\n    load(file)", "pickle.load"),
        ("from pickle import *", "pickle.*"),
        ("import pickle\ngetattr(pickle, 'lo' + 'ads')(b'')", "getattr"),
        ("import importlib\nimportlib.import_module('pickle')", "importlib.import_module"),
        ("import cloudpickle\ncloudpickle.load(file)", "cloudpickle.load"),
        ("import dill\ndill.loads(b'')", "dill.loads"),
        ("import yaml\nyaml.load(text)", "yaml.load"),
        ("import yaml\nyaml.load(text, Loader=yaml.Loader)", "yaml.load"),
        ("import yaml\nyaml.unsafe_load(text)", "yaml.unsafe_load"),
        ("import torch\ntorch.load(file)", "torch.load"),
        ("import torch as t\nt.load(file, weights_only=False)", "torch.load"),
        ("from torch import load\nload(file, weights_only=safe)", "torch.load"),
        ("import torch\nread = torch.load", "torch.load"),
        ("import numpy as np\nnp.load(file, allow_pickle=True)", "numpy.load"),
        ("import numpy as np\nnp.load(file, None, True)", "numpy.load"),
        ("import numpy as np\nnp.load(file, **options)", "numpy.load"),
        ("import subprocess\nsubprocess.run(command, shell=True)", "subprocess.run"),
        ("from subprocess import Popen\nPopen(command, shell=flag)", "subprocess.Popen"),
        ("import subprocess\nsubprocess.run(command, **options)", "subprocess.run"),
        ("import os\nos.system(command)", "os.system"),
        ("from os import system as run\nrun(command)", "os.system"),
        (
            "from stable_baselines3.common.save_util import load_from_zip_file as read\nread(file)",
            "stable_baselines3.common.save_util.load_from_zip_file",
        ),
    ],
)
def test_it_would_be_found(source, name):
    assert name in [found for _, found in unsafe(source)]


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import torch\ntorch.load(file, weights_only=True)",
        "import numpy as np\nnp.load(file)",
        "import numpy as np\nnp.load(file, allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import subprocess\nsubprocess.run(['ls'], check=True)",
        "import subprocess\nsubprocess.run(['ls'], shell=False, **options)",
        "import pickle\npickle.dumps(value)",
        "import re\nre.compile('x')",
        "import safetensors.torch\nsafetensors.torch.load(content)",
    ],
)
def test_what_is_safe_is_left_alone(source):
    assert unsafe(source) == []


# ------------------------------------------------------------------------------- what is installed


def test_versions_are_exact():
    wrong = [pin for pin in PINS if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9][\w.!]*", pin)]
    assert not wrong, "a name and one version a line: no range, no address, no local part"
    assert len(pinned()) == len(PINS) > 100


def test_everything_that_is_asked_for_is_pinned():
    asked = requirements()
    assert [str(one) for one in asked if one.url] == []
    names = {canonicalize_name(one.name) for one in asked} - {"npg"}
    assert names - pinned().keys() == set()


def test_so_is_what_that_asks_for_in_turn():
    """As far as it is installed here; the versions are those that are installed."""
    unpinned, seen, waiting = set(), set(), requirements()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen or name == "npg":
            continue
        seen.add((name, extras))
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # an extra that was not asked for
            continue
        if pinned().get(name) != installed.version.partition("+")[0]:
            unpinned.add(f"{name}=={installed.version}")
        for line in installed.requires or ():
            further = Requirement(line)
            wanted = ({"extra": extra} for extra in extras or {""})
            if further.marker is None or any(map(further.marker.evaluate, wanted)):
                waiting.append(further)
    assert len(seen) > 50
    assert not unpinned
