"""Deterministic algorithms are switched on, and the user's own settings are kept. See test_cuda.py for the effect."""

import os

import pytest
import torch

from locray.training.learner import use_deterministic_algorithms

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def unchanged(monkeypatch):
    """Restores all settings, as other tests compute in this process, too."""
    monkeypatch.setenv(VARIABLE, "")  # recorded, so that it is restored
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    for name in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    yield
    torch.use_deterministic_algorithms(False)


def test_nondeterministic_algorithms_are_switched_off():
    torch.backends.cudnn.benchmark = True
    use_deterministic_algorithms()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (False, True)
    assert os.environ[VARIABLE] == ":4096:8"
    assert torch.utils.deterministic.fill_uninitialized_memory is False


def test_a_workspace_setting_of_the_user_stays(monkeypatch):
    monkeypatch.setenv(VARIABLE, ":16:8")
    use_deterministic_algorithms()
    assert os.environ[VARIABLE] == ":16:8"
