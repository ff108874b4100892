import ctypes.util
import gc
import importlib
import os
import pkgutil
import random
import sys
import tomllib
from contextlib import contextmanager, suppress
from pathlib import Path

# Before anything imports torch, matplotlib or mujoco: one thread per process, since `make test`
# runs a process per core; no window, and off-screen rendering where there is no display.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
if sys.platform == "linux" and not os.environ.get("DISPLAY") and ctypes.util.find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

SCRIPTS = Path(__file__).parent / "scripts"
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())


@pytest.fixture(autouse=True)
def _seed():
    """Every test starts from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries still draw from it
    if torch.accelerator.is_available():
        torch.manual_seed(0)
    else:  # without a stack trace for each device that might come to life later: 1 ms
        torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def _restore_torch_defaults():
    """A test may change the default dtype or the thread count; the next one does not see it."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    torch.set_default_dtype(dtype)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@contextmanager
def _uncounted(config):
    """Takes coverage's tracer off (pytest-cov's own marker takes 4 ms, as long as many a test)."""
    tracer = sys.gettrace()
    if not config.pluginmanager.hasplugin("_cov"):
        yield
        return
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Counts what importing our modules runs, not how pytest finds the tests: half of that time.

    All modules are imported, so one that no test imports shows its definitions as covered, here but
    not in `make coverage`.
    """
    distributes = session.config.pluginmanager.hasplugin("dsession")  # its workers collect
    if distributes or os.environ.get("NPG_COVERAGE") == "all":
        return (yield)
    if session.config.pluginmanager.hasplugin("_cov"):
        for name in PROJECT["tool"]["coverage"]["run"]["source"]:
            for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
                with suppress(ImportError):  # an extra that is not installed
                    importlib.import_module(module.name)
    with _uncounted(session.config):
        return (yield)


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(items):
    """Counting lines costs half as much again. Coverage is of npg, agents and envs by their own
    tests, and of each test's first case: the others run much the same. What is not counted can only
    lower the figure; `make coverage` counts every case.
    """
    if os.environ.get("NPG_COVERAGE") == "all":
        return
    seen = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if item.path.is_relative_to(SCRIPTS) or test in seen:
            item.add_marker("uncounted")
        seen.add(test)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Does not count what is marked."""
    if item.get_closest_marker("uncounted") is None:
        return (yield)
    with _uncounted(item.config):
        return (yield)


def pytest_collection_finish():
    """What is imported by now stays: garbage collections need not visit it again and again."""
    gc.freeze()


@pytest.fixture(scope="module")
def young_heap():
    """For modules whose tests collect garbage themselves: what earlier ones left, stays as well."""
    gc.collect()
    gc.freeze()
