import pytest
import torch


@pytest.fixture(autouse=True)
def _float64(_restore_torch_defaults):
    """Oracles are compared in float64; tests of float32 say so."""
    torch.set_default_dtype(torch.float64)
