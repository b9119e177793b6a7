"""m2 against msmodelslim's m2: the error of the logits on images that neither was calibrated on, by one evaluator."""
from dataclasses import dataclass
from pathlib import Path

import evaluator
import pytest
import reference
import tiny
import torch

from quant import QuantConfig, ascend
from quant.checkpoint import Checkpoint
from quant.families import family_of
from quant.samples import prepare

CONFIG = {"anti_method": "m2", "act_method": 1, "dtype": "float32", "dev_type": "cpu"}
CALIBRATION, HELD_OUT = 4, 6  # images


@dataclass
class Runs:
    """One checkpoint and one set of images, smoothed and rounded by both."""

    checkpoint: Checkpoint
    theirs: reference.Reference
    ours: ascend.Export
    plain: ascend.Export  # ours without smoothing
    held_out: list[dict]

    def errors(self, export: ascend.Export) -> list[float]:
        """Per held-out image."""
        exact, rounded = evaluator.float_model(self.checkpoint), evaluator.int8_model(self.checkpoint, export)
        return [evaluator.relative_error(evaluator.logits(rounded, x), evaluator.logits(exact, x)) for x in self.held_out]


@pytest.fixture(scope="module", params=["qwen2_vl", "llava"])
def runs(request, tmp_path_factory, native) -> Runs:
    path: Path = tmp_path_factory.mktemp(request.param)
    source = tiny.make(path / "source", request.param, dtype="float32")
    images = tiny.make_images(path / "images", CALIBRATION)
    job = {"source": str(source), "images": str(images)}
    native(
        {**job, "config": CONFIG, "save": {str(path / "m2"): "ascendV1"}},
        {**job, "config": {**CONFIG, "anti_method": "none"}, "save": {str(path / "none"): "ascendV1"}},
    )
    theirs = reference.run(source, images, QuantConfig(**CONFIG), path / "msmodelslim")
    checkpoint, held_out = Checkpoint(source), tiny.make_images(path / "held_out", HELD_OUT, seed=1)
    inputs = prepare(held_out, checkpoint, family_of(checkpoint.config, source), QuantConfig(**CONFIG)).inputs
    return Runs(checkpoint, theirs, ascend.read(path / "m2"), ascend.read(path / "none"), inputs)


def test_evaluator_agrees_with_the_library(runs):
    """Linear by linear: its fake quantization and our integers differ by the rounding of the bias to whole multiples of deq_scale."""
    rounded = evaluator.int8_model(runs.checkpoint, runs.theirs.export())
    for name, (lo, hi) in runs.theirs.ranges.items():
        linear = runs.theirs.model.get_submodule(name)
        x = torch.empty(32, linear.in_features).uniform_(generator=torch.Generator().manual_seed(0)) * (hi - lo) + lo
        with torch.no_grad():
            assert evaluator.relative_error(rounded.get_submodule(name)(x), linear(x)) < 1e-3, name


def test_error_on_held_out_images(runs):
    ours, theirs, plain = (sum(runs.errors(export)) / HELD_OUT for export in (runs.ours, runs.theirs.export(), runs.plain))
    print(f"{runs.checkpoint.dir}: logits error, plain {plain:.2%}, msmodelslim's m2 {theirs:.2%}, ours {ours:.2%}")
    assert ours <= theirs
    assert ours < plain
