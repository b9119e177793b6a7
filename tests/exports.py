"""Good exports of the tiny checkpoints, made once a session, and what tests break in copies of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import tiny
from safetensors.torch import load_file, save_file

from quant.base.config import QuantConfig
from quant.calibrate.calibrator import Calibrator

DESCRIPTION = "quant_model_description.json"
WEIGHTS = "quant_model_weight_w8a8.safetensors"


class Exports:
    """exports(family, dtype, layout) -> a directory that must not be changed; exports.source(family, dtype) -> its
    checkpoint.
    """

    def __init__(self, root: Path):
        self.root = root
        self.images = tiny.make_images(root / "images", 1)

    def source(self, family: str, dtype: str = "bfloat16") -> Path:
        source = self.root / f"{family}-{dtype}"
        return source if source.exists() else tiny.make(source, family, dtype=dtype)

    def __call__(self, family: str, dtype: str = "bfloat16", layout: str = "ascendV1", **choices) -> Path:
        extra = "".join(f"-{key}-{value}" for key, value in choices.items())
        out = self.root / f"{family}-{dtype}-{layout}{extra}"
        if not out.exists():
            choices["dtype"] = dtype  # asked for, or float32 would become bfloat16 and LLaVA float16
            # On these images alone: what tests measure on them is what the ranges were taken from.
            config = QuantConfig(anti_method="m2", calib_text="none", dev_type="cpu", **choices)
            calibrator = Calibrator(self.source(family, dtype), config, str(self.images))
            calibrator.run(self.root)
            for name in ("ascendV1", "mindie"):
                if not (place := self.root / f"{family}-{dtype}-{name}{extra}").exists():
                    calibrator.save(place, [name])
            calibrator.close()
        return out


def copy(export: Path, target: Path) -> Path:
    """A copy to break, with the modes of the original."""
    shutil.copytree(export, target)
    return target


def edit_json(file: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def edit_tensors(directory: Path, change: Callable[[dict], object]) -> None:
    """Change the tensors of a one-file export: a dict name -> tensor."""
    file = directory / WEIGHTS
    tensors = load_file(file)
    change(tensors)
    mode = file.stat().st_mode & 0o777
    file.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    file.chmod(mode)


def drop(directory: Path, *names: str) -> None:
    """Remove tensors together with their entries, as if they had never been exported."""
    edit_tensors(directory, lambda tensors: [tensors.pop(name) for name in names])
    edit_json(directory / DESCRIPTION, lambda described: [described.pop(name) for name in names])
