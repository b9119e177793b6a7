"""m2 against msmodelslim's m2: the error of the logits on images that neither was calibrated on, by one evaluator.

On one tiny random model the better of the two is partly luck (which values of the held-out images leave the calibrated
ranges), so the mean over several models counts. The library runs with min-max ranges, our default, and with its
histogram, the default of its scripts.
"""

from dataclasses import dataclass
from pathlib import Path

import evaluator
import pytest
import reference
import tiny
import torch

from quant import QuantConfig
from quant.export import reader
from quant.families import family_of
from quant.files.checkpoint import Checkpoint
from quant.inputs.samples import prepare

CONFIG = {"anti_method": "m2", "act_method": 1, "dtype": "float32", "dev_type": "cpu", "calib_text": "none"}
SEEDS = range(3)  # models
CALIBRATION, HELD_OUT = 4, 4  # images


@dataclass
class Runs:
    """One checkpoint and one set of images, smoothed and rounded by both."""

    checkpoint: Checkpoint
    theirs: dict[int, reference.Reference]  # act_method -> run
    ours: reader.Export
    plain: reader.Export  # ours without smoothing
    held_out: list[dict]

    def error(self, export: reader.Export) -> float:
        """Mean over the held-out images."""
        exact, rounded = evaluator.float_model(self.checkpoint), evaluator.int8_model(self.checkpoint, export)
        errors = [
            evaluator.relative_error(evaluator.logits(rounded, x), evaluator.logits(exact, x)) for x in self.held_out
        ]
        return sum(errors) / len(errors)


@pytest.fixture(scope="module", params=["qwen2_vl", "llava"])
def runs(request, tmp_path_factory, native) -> list[Runs]:
    paths: list[Path] = [tmp_path_factory.mktemp(f"{request.param}-{seed}") for seed in SEEDS]
    jobs, config = [], QuantConfig(**CONFIG)
    for seed, path in enumerate(paths):
        tiny.make(path / "source", request.param, dtype="float32", seed=seed)
        tiny.make_images(path / "images", CALIBRATION, seed=10 + seed)
        tiny.make_images(path / "held_out", HELD_OUT, seed=100 + seed)
        job = {"source": str(path / "source"), "images": str(path / "images")}
        jobs.append({**job, "config": CONFIG, "save": {str(path / "m2"): "ascendV1"}})
        jobs.append({**job, "config": {**CONFIG, "anti_method": "none"}, "save": {str(path / "none"): "ascendV1"}})
    native(*jobs)
    result = []
    for path in paths:
        checkpoint = Checkpoint(path / "source")
        held_out = prepare(path / "held_out", checkpoint, family_of(checkpoint.config, path), config).inputs
        theirs = {
            act_method: reference.run(
                checkpoint.dir,
                path / "images",
                QuantConfig(**{**CONFIG, "act_method": act_method}),
                path / f"theirs{act_method}",
            )
            for act_method in (1, 2)
        }
        result.append(Runs(checkpoint, theirs, reader.read(path / "m2"), reader.read(path / "none"), held_out))
    return result


def test_evaluator_agrees_with_the_library(runs):
    """Linear by linear: fake quantization leaves the bias as it is, integers round it to a multiple of deq_scale."""
    theirs = runs[0].theirs[1]
    rounded = evaluator.int8_model(runs[0].checkpoint, theirs.export())
    for name, (lo, hi) in theirs.ranges.items():
        linear = theirs.model.get_submodule(name)
        x = torch.empty(32, linear.in_features).uniform_(generator=torch.Generator().manual_seed(0)) * (hi - lo) + lo
        with torch.no_grad():
            assert evaluator.relative_error(rounded.get_submodule(name)(x), linear(x)) < 1e-3, name


def test_error_on_held_out_images(runs):
    rows = [
        [run.error(export) for export in (run.plain, run.theirs[1].export(), run.theirs[2].export(), run.ours)]
        for run in runs
    ]
    text = "logits error: plain {:.1%}, msmodelslim's m2 {:.1%}, with its histogram {:.1%}, our m2 {:.1%}"
    print(*(text.format(*row) for row in rows), sep="\n")
    plain, minmax, histogram, ours = torch.tensor(rows).mean(dim=0).tolist()
    assert ours <= minmax
    assert ours <= histogram
    assert ours < plain
