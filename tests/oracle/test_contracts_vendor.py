"""The check on directories as msmodelslim's published scripts leave them: the findings that the servers' loaders make
one expect.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import reference
import tiny

from quant import QuantConfig, families
from quant.servers.rules import check
from quant.servers.rules.repair import repair

# What the scripts write into config.json with --mindie_format; constants but for anti_method.
SETTINGS = {
    "group_size": 0,
    "act_method": 2,
    "anti_method": "m2",
    "is_lowbit": False,
    "mm_tensor": False,
    "w_sym": True,
    "open_outlier": True,
    "is_dynamic": False,
    "w_bit": 8,
    "a_bit": 8,
    "dev_type": "npu",
}
MODES_AND_MERGES = {"modes", "side-files"}  # 0400 and 0600; only *.json and *.py are copied, so no merges.txt


def as_its_scripts(source: Path, raw: Path, out: Path, layout: str) -> Path:
    """The library's own files, completed as quant_qwen2vl.py and quant_llava.py do it."""
    shutil.copytree(raw / layout, out)
    for file in (*source.glob("*.json"), *source.glob("*.py")):
        if file.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copyfile(file, out / file.name)
            (out / file.name).chmod(0o600)
    config = json.loads((source / "config.json").read_text())
    if layout == "mindie":
        config["quantize"] = config["vision_config"]["quantize"] = "w8a8"
        config["quantization_config"] = SETTINGS
    (out / "config.json").write_text(json.dumps(config, indent=4))
    (out / "config.json").chmod(0o600)
    return out


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> tuple[Path, Path]:
    """(source, what the library wrote of it in both layouts)"""
    place = tmp_path_factory.mktemp("qwen")
    source, images = tiny.make(place / "source", "qwen2_vl"), tiny.make_images(place / "images", 1)
    reference.run(source, images, QuantConfig(anti_method="none", dtype="bfloat16", dev_type="cpu"), place / "raw")
    return source, place / "raw"


def named(directory: Path, server: str, source: Path) -> set[str]:
    return {finding.rule for finding in check(directory, [server], source=source)}


def test_qwen_of_the_script_without_mindie_format(qwen, tmp_path):
    source, raw = qwen
    out = as_its_scripts(source, raw, tmp_path / "out", "ascendV1")
    # Nothing tells MindIE that the vision tower is int8; vLLM-Ascend only misses what was not copied.
    assert named(out, "mindie", source) == {*MODES_AND_MERGES, "vision-switch"}
    assert named(out, "vllm-ascend", source) == MODES_AND_MERGES - {"modes"}


def test_qwen_of_the_script_with_mindie_format(qwen, tmp_path):
    source, raw = qwen
    out = as_its_scripts(source, raw, tmp_path / "out", "mindie")
    assert named(out, "mindie", source) == MODES_AND_MERGES
    # The block in config.json hides the description, which is not under the name that vLLM-Ascend looks for either.
    assert named(out, "vllm-ascend", source) == {"quantization-config", "description-file", "side-files"}
    modes = {finding.what[:9] for finding in check(out, ["mindie"]) if finding.rule == "modes"}
    assert modes == {"mode 0400", "mode 0600"}


@pytest.mark.parametrize("layout", ["ascendV1", "mindie"])
def test_qwen_is_repaired_without_the_float_weights(qwen, tmp_path, layout):
    source, raw = qwen
    out = as_its_scripts(source, raw, tmp_path / "out", layout)
    repair(out, tmp_path / "fixed", source)
    assert check(tmp_path / "fixed", source=source) == []


def test_llava_of_the_script(tmp_path, monkeypatch):
    """It rounds the vision tower too, which MindIE computes in float without noticing that it holds codes. (And the
    projector, which kept_float's own tests have.)
    """
    family = families.family_of({"architectures": ["LlavaForConditionalGeneration"]}, "")
    head = {name: why for name, why in family.must_float.items() if name.endswith("lm_head")}
    rounded = replace(family, vision="int8", vision_int8_refused=None, must_float=head)
    monkeypatch.setattr(reference, "family_of", lambda config, where: rounded)
    source, images = tiny.make(tmp_path / "source", "llava", dtype="float16"), tiny.make_images(tmp_path / "images", 1)
    config = QuantConfig(anti_method="none", dtype="float16", dev_type="cpu")
    reference.run(source, images, config, tmp_path / "raw")
    out = as_its_scripts(source, tmp_path / "raw", tmp_path / "out", "mindie")
    # (Of this tiny vocabulary MindIE's default top_k would be more than there is.)
    assert named(out, "mindie", source) == {"vision-whole", "modes", "sampling"}
    assert named(out, "vllm-ascend", source) == {"quantization-config", "description-file"}
