"""README repeats figures of docs/benchmarks.md, and only those."""

import re

from training.command_line import ROOT


def test_throughput_is_that_of_the_last_benchmark():
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("\n| | npg | sb3-contrib | ratio |\n|---|---|---|---|\n")[2].split(
        "\n\n"
    )[0]
    stated = [tuple(re.findall(r"[\d.,]+", row)[-3:]) for row in table.splitlines()]
    record = (ROOT / "docs" / "benchmarks.md").read_text()
    pattern = r"([\d,]+) steps/s \| sb3-contrib ([\d,]+) steps/s \| ([\d.]+)"
    assert stated
    assert stated == re.findall(pattern, record)
