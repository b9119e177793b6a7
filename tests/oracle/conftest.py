"""Tests against msmodelslim, in its own environment (make test-oracle). Elsewhere there is nothing to compare with, and nothing is collected:
pytest then ends with exit code 5, so a broken environment cannot pass for a good one."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
os.environ["OMP_NUM_THREADS"] = "1"  # tensors are tiny: a second thread makes the library's searches ten times slower
collect_ignore_glob = [] if importlib.util.find_spec("msmodelslim") else ["test_*.py"]


@pytest.fixture(scope="session")
def native():
    """native(jobs): run our own engine where it lives, in the main environment; jobs as in native.py."""
    python = Path(os.environ.get("QUANT_PYTHON", ROOT / ".venv" / "bin" / "python"))
    if not python.is_file():
        pytest.fail(f"{python}: not there; run `make venv` first, or set QUANT_PYTHON to a Python with requirements.txt installed")

    def run(*jobs: dict) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run([python, Path(__file__).with_name("native.py"), repr(jobs)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run


sys.path.insert(0, str(Path(__file__).parent))
