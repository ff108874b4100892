import pytest

import npg


@pytest.mark.parametrize("name", ["CheckpointError", "ConfigurationError", "NumericalError"])
def test_a_hyper_parameter_search_can_prune_on_them(name):
    assert issubclass(getattr(npg, name), ValueError)
