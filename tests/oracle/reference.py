"""msmodelslim through quant/calibrate/vendor.py, and what tests see of it but users do not: observers, other layout,
own files.

reference = run(source, images, QuantConfig(...), directory)
reference.export                  the library's own files, as an Export
reference.ranges["model..."]      (lo, hi) that its observer of that linear ended with
reference.outputs(inputs)         logits of its fake-quantized model
"""

import json
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from quant import QuantConfig
from quant.calibrate import vendor
from quant.export.description import DESCRIPTION
from quant.export.plan import make_plan
from quant.export.reader import Export
from quant.families import family_of
from quant.files.checkpoint import Checkpoint
from quant.files.safetensors_io import read_header
from quant.inputs.samples import prepare

SAVE_TYPES = {"ascendV1": "ascendV1", "mindie": "safe_tensor"}  # our name of a layout -> the library's


@dataclass
class Reference:
    """What one run of the library left."""

    directory: Path
    model: nn.Module
    ranges: dict[str, tuple[Tensor, Tensor]]
    inputs: list[dict[str, Tensor]]
    notices: list[str]

    def export(self, kind: str = "ascendV1") -> Export:
        return read_raw(self.directory / kind, kind)

    @torch.no_grad()
    def outputs(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model(**inputs).logits


def run(source: Path, images: Path, config: QuantConfig, directory: Path) -> Reference:
    """Everything that the library makes of `source`; its files stay in `directory`, in both layouts."""
    from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator
    from msmodelslim.pytorch.llm_ptq.llm_ptq_tools.quant_modules import LinearQuantizer

    checkpoint = Checkpoint(source)
    family = family_of(checkpoint.config, source)
    plan = make_plan(checkpoint, family, config)
    inputs = prepare(images, checkpoint, family, config).inputs
    dtype = getattr(torch, config.dtype)
    calibrators, notices, save = [], [], Calibrator.save

    def keep(calibrator, *args, **kwargs):
        calibrators.append(calibrator)
        for kind, name in SAVE_TYPES.items():
            save(calibrator, str(directory / kind), save_type=[name])
        return save(calibrator, *args, **kwargs)

    directory.mkdir()
    with mock.patch.object(Calibrator, "save", keep):
        with vendor.vendor_export(checkpoint, plan, config, inputs, dtype, "cpu", directory, notices.append):
            pass
    model = calibrators[0].model
    observers = {
        name: module.quant_input for name, module in model.named_modules() if isinstance(module, LinearQuantizer)
    }
    ranges = {name: (observer.x_min, observer.x_max) for name, observer in observers.items()}
    return Reference(directory, model, ranges, inputs, notices)


def read_raw(directory: Path, kind: str) -> Export:
    """An export of the library itself, which has no config.json: that is its scripts' work."""
    description = json.loads((directory / DESCRIPTION[kind]).read_text())
    tensors = {
        name: info for file in sorted(directory.glob("*.safetensors")) for name, info in read_header(file).items()
    }
    return Export(directory, kind, {}, description, tensors)
