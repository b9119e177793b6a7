"""Samples without an image: calibrated where nothing but the language model becomes int8, else refused in one line."""

import json

import pytest
import tiny
import torch

from quant import Calibrator, QuantConfig, UsageError
from quant.calibrate.summary import dry_run

FAMILIES = ["qwen2_vl", "qwen2_5_vl", "llava"]
SAMPLES = [
    {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    for ids in ([1, 5, 9, 7, 3], [2, 8, 8, 4])
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    return lambda family: root / family if (root / family).exists() else tiny.make(root / family, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_language_model_alone_is_calibrated_on_text(source, tmp_path, family, capsys):
    calibrator = Calibrator(source(family), QuantConfig(vision="float", dev_type="cpu"), SAMPLES)
    dry_run(calibrator)
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert {"memory", "disk", "time"} <= told.keys()
    share = next(line for line in told.values() if "of the multiply-adds" in line)
    calibrator.run(tmp_path).save(tmp_path / "out")
    assert share.split()[1] in capsys.readouterr().out  # the summary counts as the estimate did
    blocks = json.loads((tmp_path / "out" / "quant_run.json").read_text())["blocks"]
    assert all((entry["snr_db"] or 0) > 15 for entry in blocks if entry["int8"]) and any(e["int8"] for e in blocks)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_an_int8_vision_tower_that_no_sample_enters_is_refused(source, tmp_path, family):
    calibrator = Calibrator(source(family), QuantConfig(vision="int8", dev_type="cpu"), SAMPLES)
    with pytest.raises(UsageError, match="none of the 2 samples enters the vision tower, .*--vision float"):
        calibrator.run(tmp_path)
    assert not list(tmp_path.iterdir())
