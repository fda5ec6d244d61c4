"""A fixture for tests that compute with torch."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Limits torch to one thread: small networks gain nothing from a second one, and wait for it on busy machines."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
