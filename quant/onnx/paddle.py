"""Paddle's own format (inference.pdmodel and inference.pdiparams in a folder) through paddle2onnx, where it is
installed; it needs paddlepaddle, 190 MB, so neither is demanded of those who bring ONNX.
"""

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from onnx import ModelProto

from ..base.errors import QuantError, UsageError
from .graph import OPSET, read

NAMES = ("inference.pdmodel", "inference.json")


def is_paddle(source: Path) -> bool:
    """Whether `source` is a folder with a Paddle model."""
    return source.is_dir()


def converted(source: Path) -> ModelProto:
    """The model in a folder as ONNX. Raises UsageError where there is none in it, or paddle2onnx is not installed,
    QuantError where it fails.
    """
    name = next((name for name in NAMES if (source / name).is_file()), None)
    if name is None or not (source / "inference.pdiparams").is_file():
        raise UsageError(f"{source}: holds no Paddle model ({' or '.join(NAMES)}, and inference.pdiparams)")
    if find_spec("paddle2onnx") is None or find_spec("paddle") is None:
        raise UsageError(
            f"{source}: is a Paddle model, and paddle2onnx is not installed (pip install paddlepaddle paddle2onnx);"
            " or convert it elsewhere, and name the ONNX file"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{source.name}.onnx"
        command = [sys.executable, "-m", "paddle2onnx.command", "--model_dir", source, "--model_filename", name]
        command += ["--params_filename", "inference.pdiparams", "--save_file", file, "--opset_version", OPSET]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if done.returncode or not file.is_file():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise QuantError(f"{source}: paddle2onnx fails: {last[0]}")
        return read(file)
