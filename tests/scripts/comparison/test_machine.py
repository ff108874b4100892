"""What a run says about its machine."""

import os
import platform

import pytest
from comparison import machine

X86 = "processor\t: 0\nvendor_id\t: AnyVendor\nmodel name\t: Any CPU: 2.1 GHz\n\nprocessor\t: 1\n"
ARM = "processor\t: {}\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: {}\n\n"


def processor(path, monkeypatch, text):
    file = path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(machine, "INFORMATION", file)
    return machine.here()["cpu"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound here")
def test_cores_are_those_that_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert machine.here()["cores"] == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(("count", "cores"), [(6, 6), (None, 1)])
def test_cores_of_a_system_that_binds_no_process(monkeypatch, count, cores):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert machine.here()["cores"] == cores


def test_the_model_name(tmp_path, monkeypatch):
    assert processor(tmp_path, monkeypatch, X86) == "Any CPU: 2.1 GHz"


def test_different_processors_of_one_architecture_are_different(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "processor", lambda: "")
    one = ARM.format(0, "0xd0c") + ARM.format(1, "0xd0c")
    assert processor(tmp_path, monkeypatch, one) == (
        "aarch64, CPU implementer 0x41, CPU part 0xd0c"
    )
    both = ARM.format(0, "0xd05") + ARM.format(1, "0xd0a")
    assert processor(tmp_path, monkeypatch, both) == (
        "aarch64, CPU implementer 0x41, CPU part 0xd05, CPU part 0xd0a"
    )


@pytest.mark.parametrize("text", [None, "", "processor : 0\nhart : 2\n"])
def test_where_nothing_tells_processors_apart_no_two_machines_are_alike(
    tmp_path, monkeypatch, text
):
    monkeypatch.setattr(platform, "processor", lambda: "riscv64")
    monkeypatch.setattr(platform, "node", lambda: "first")
    assert processor(tmp_path, monkeypatch, text) == "riscv64 of first"
