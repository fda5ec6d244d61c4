"""GPUs that are missing are reported before Ray waits for them."""

import pytest

from locray.errors import UsageError
from locray.ray_runtime.start import check_gpus


def test_a_missing_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match=r"--device gpu: Ray finds no GPU on this machine.*RAY_ADDRESS"):
        check_gpus("gpu", 0)
    check_gpus("gpu", 1)
    check_gpus("auto", 0)
    check_gpus("cpu", 0)


def test_a_cluster_may_get_gpus_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check_gpus("gpu", 0)
