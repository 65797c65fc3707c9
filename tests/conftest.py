"""What all tests share: where the optional real text is, and threads set once."""

import signal
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("pgolf", deadline=None)  # a shared machine is slow now and then, and that is no failure
settings.load_profile("pgolf")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
torch.set_num_threads(1)  # the suite runs one worker per core


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real text and the challenge's tokenizers; not part of the project, so its absence skips."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; the tests on it are left out")
    return folder
