"""Settings for the tests that train here."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Beside other busy processes, threads that wait for one another are far slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
