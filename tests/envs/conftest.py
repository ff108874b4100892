import pytest


@pytest.fixture(autouse=True)
def _work_elsewhere(monkeypatch, tmp_path):
    """MuJoCo writes its log to the working directory, which is not to be the repository."""
    monkeypatch.chdir(tmp_path)
