"""What Ray and torch cost before anything is done: Ray is started, and a worker imports torch."""

import ray


@ray.remote
def version() -> str:
    """Of torch."""
    import torch

    return str(torch.__version__)


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    ray.get(version.remote())
