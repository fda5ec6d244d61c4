"""Starts Ray and a worker that imports torch, to measure the time before any work."""

import ray


@ray.remote
def version() -> str:
    """Version of torch."""
    import torch

    return str(torch.__version__)


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    ray.get(version.remote())
