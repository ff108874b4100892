"""What of a Ray cluster can be tested without one; the rest is in test_cluster.py."""

import socket
import sys

import pytest
from common import ROOT
from comparison import backends
from comparison.backends.address import check_reachable
from comparison.backends.local import Local
from comparison.backends.order import Order, at_home
from comparison.backends.source import stage
from comparison.execution_options import Execution

from npg.errors import ConfigurationError


def test_processes_are_what_is_used_if_nothing_is_said():
    with backends.opened(Execution()) as backend:
        assert isinstance(backend, Local)


def test_an_address_without_a_cluster():
    with pytest.raises(ConfigurationError, match=r"address 10\.0\.0\.1:6379.*add --backend ray"):
        backends.opened(Execution(address="10.0.0.1:6379"))


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    for module in ("cluster", "cluster_run", "worker", "workers"):
        monkeypatch.delitem(sys.modules, f"comparison.backends.{module}", raising=False)
        monkeypatch.delattr(backends, module, raising=False)
    with pytest.raises(ConfigurationError, match=r"needs Ray.*pip install \.\[ray\]"):
        backends.opened(Execution(backend="ray"))


@pytest.mark.parametrize("address", ["nonsense", "ray://", "host:", ":6379", "host:port"])
def test_what_is_no_address(address):
    with pytest.raises(ConfigurationError, match=r"none of auto, HOST:PORT and ray://HOST:PORT"):
        check_reachable(address)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_is(scheme):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=rf"no Ray cluster answers at {address}.*open"):
            check_reachable(address)
        free.listen()
        check_reachable(address)


def test_a_port_that_cannot_be():
    with pytest.raises(ConfigurationError, match=r"no Ray cluster answers at 127\.0\.0\.1:70000"):
        check_reachable("127.0.0.1:70000")


def test_a_command_in_the_words_of_another_machine(tmp_path):
    order = Order(
        command=["/their/python", "/their/npg/scripts/compare.py", "agent", "trpo", "CartPole-v1",
                 "--preset", "../mine.yml", "--rate", "0.1", "--output", "reports/runs/x"],
        root="/their/npg",
        inputs={"../mine.yml": b"{}"},
    )  # fmt: skip
    here = at_home(order, tmp_path)
    preset = tmp_path / "inputs" / "mine.yml"
    assert here == [
        *[sys.executable, str(ROOT / "scripts" / "compare.py"), "agent", "trpo", "CartPole-v1"],
        *["--preset", str(preset), "--rate", "0.1", "--output", str(tmp_path)],
    ]
    assert preset.read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("words", "translated"),
    [
        # What lies below their project, and is not sent, is a path on every machine.
        (["optimizer", "--data-dir", "/their/npg/data"], {}),
        # A file or a directory may be called like anything.
        (["agent", "trpo", "trpo", "--preset", "trpo"], {6: "inputs/trpo"}),
        (["agent", "out", "CartPole-v1", "--output", "out"], {6: "."}),
        (["agent", "/their/python", "CartPole-v1", "--preset", "trpo.yml"], {}),
    ],
)
def test_only_what_another_machine_has_elsewhere_is_translated(tmp_path, words, translated):
    order = Order(["/their/python", "script", *words], "/their/npg", inputs={"trpo": b"{}"})
    expected = [sys.executable, "script", *words]
    for index, path in translated.items():
        expected[index] = str(tmp_path / path)
    assert at_home(order, tmp_path) == expected


def test_what_is_sent_of_the_project(tmp_path):
    stage(tmp_path)
    sent = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert {"scripts/compare.py", "scripts/presets/trpo.yml", "npg/errors.py"} <= sent
    assert {path.split("/")[0] for path in sent} == {"npg", "agents", "envs", "scripts"}
    assert not any("__pycache__" in path for path in sent)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 5_000_000
