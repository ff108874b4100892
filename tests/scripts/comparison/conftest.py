"""One report of each kind, which all tests of the page read."""

import pytest

from tests.scripts.comparison import synthetic


def written(directory, make, **changed):
    from comparison import page, results

    make(directory, **changed)
    page.write(results.load(directory), directory, repetitions=50)
    return directory


@pytest.fixture(scope="session")
def agent_report(tmp_path_factory):
    return written(tmp_path_factory.mktemp("agents"), synthetic.agents)


@pytest.fixture(scope="session")
def optimizer_report(tmp_path_factory):
    directory = tmp_path_factory.mktemp("optimizers")
    return written(directory, synthetic.optimizers, seeds=2, wall_clock_counts=False)
