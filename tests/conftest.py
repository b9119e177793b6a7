import os
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

# The tests' own helpers (tiny.py) and the packages beside them, wherever pytest was started.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Where transformers copies code that a checkpoint brings.
os.environ.setdefault("HF_MODULES_CACHE", str(Path(tempfile.gettempdir()) / f"w8a8-tests-{os.getuid()}" / "modules"))
# The tensors are tiny: a second thread only waits, and for a hundred times as long when the machine is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402

from quant.base.config import QuantConfig  # noqa: E402

# Of the shipped text, as much as a tiny model needs: all of it would take longer than everything else in a test.
QuantConfig.model_fields["text_tokens"].default = 300
QuantConfig.model_rebuild(force=True)


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory):
    """The folder of the caches below, which is also the one of what fixtures for many tests compute."""
    folder = tmp_path_factory.mktemp("caches")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(caches, monkeypatch):
    """The answers that `evaluate` keeps are not kept for the user, nor for another test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches / uuid4().hex))
