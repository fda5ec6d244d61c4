"""GPUs are waited for where some may come, and asked for where none can."""

import pytest

from locray.cluster import check_gpus
from locray.errors import UsageError


def test_a_machine_alone_that_has_no_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match=r"--device gpu: Ray finds no GPU on this machine.*RAY_ADDRESS"):
        check_gpus("gpu", 0)
    with pytest.raises(UsageError, match=r"--jpeg-decoder gpu: Ray finds no GPU on this machine"):
        check_gpus("gpu", 0, "--jpeg-decoder gpu")
    check_gpus("gpu", 1)
    check_gpus("auto", 0)
    check_gpus("cpu", 0)


def test_a_cluster_may_have_some_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_gpus("gpu", 0)
