"""Tests against msmodelslim, in its own environment (make test-oracle).

Elsewhere there is nothing to compare with and nothing is collected: pytest then ends with exit code 5, so that a broken
environment cannot pass for a good one.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
os.environ["OMP_NUM_THREADS"] = "1"  # tensors are tiny: a second thread makes the library's searches ten times slower
collect_ignore_glob = [] if importlib.util.find_spec("msmodelslim") else ["test_*.py"]
PYTHON = Path(os.environ.get("QUANT_PYTHON", ROOT / ".venv" / "bin" / "python")).absolute()
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def native():
    """native(*jobs): run our own engine where it lives, in the main environment; jobs as in native.py."""
    if not PYTHON.is_file():
        pytest.fail(f"{PYTHON}: not there; make test makes .venv, or QUANT_PYTHON names a Python with requirements.txt")

    def run(*jobs: dict) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [PYTHON, Path(__file__).with_name("native.py"), repr(jobs)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run
