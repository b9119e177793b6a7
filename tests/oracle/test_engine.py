"""--engine msmodelslim from the command line: the library's numbers, untouched, in our layouts."""

import re
from pathlib import Path

import pytest
import reference
import tiny
import torch
from safetensors.torch import load_file, save_file

from quant import QuantConfig
from quant.commands.cli import main
from quant.export import reader
from quant.files.config_json import dtype_name


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A directory with images, and an empty one below it to work in."""
    tiny.make_images(tmp_path / "images", 2)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


def quantize(*flags: str) -> int:
    """Paths are relative: the library works in a directory of its own."""
    paths = ("--model_path", "../source", "--calib_images", "../images", "--save_directory", "../out")
    return main(["quantize", *paths, "--engine", "msmodelslim", "--device_type", "cpu", *flags])


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("family", "dtype", "method", "layout"),
    [
        ("qwen2_vl", "bfloat16", "m2", "ascendV1"),
        ("qwen2_vl", "float16", "none", "mindie"),
        ("llava", "float16", "m2", "mindie"),
        ("llava", "float16", "none", "ascendV1"),
    ],
)
def test_its_numbers_in_our_layout(place, family, dtype, method, layout):
    source = tiny.make(place / "source", family, dtype=dtype)
    before = contents(source)
    flags = ["--mindie_format"] if layout == "mindie" else []
    assert quantize("--anti_method", method, *flags) == 0

    ours = reader.read(place / "out")
    config = QuantConfig(anti_method=method, dtype=dtype, dev_type="cpu")
    theirs = reference.run(source, place / "images", config, place / "reference").export(layout)
    assert ours.kind == layout and dtype_name(ours.config) == dtype
    assert {**ours.description, "version": None} == {**theirs.description, "version": None}
    assert set(ours.tensors) == set(theirs.tensors)
    for name in theirs.tensors:
        ours_, theirs_ = ours.load(name), theirs.load(name)
        assert torch.equal(ours_, theirs_.to(ours_.dtype)), name
        assert theirs_.dtype == ours_.dtype or ours_.dtype == torch.float32, f"{name} has lost bits"
    assert contents(source) == before
    assert not list((place / "cwd").iterdir())


def test_says_when_a_method_changed_nothing(place, capsys):
    tiny.make(place / "source", "qwen2_vl")
    assert quantize("--anti_method", "m4") == 0
    output = capsys.readouterr()
    assert "msmodelslim's m4 changed nothing: it found no group in Qwen2-VL" in output.out
    assert "holds the whole model in memory" in output.out
    assert output.err == ""


def test_tells_that_m2_looks_at_one_sample(place, capsys):
    tiny.make(place / "source", "llava", dtype="float16")
    assert quantize("--anti_method", "m2", "--log_file", str(place / "log")) == 0
    told = capsys.readouterr().out
    assert re.search(r"from the first of the \d+ samples alone", told)
    assert "msmodelslim's m2 changed" in told
    assert "Calibration end!" in (place / "log").read_text()


def test_tied_head(place):
    """The library cannot save one by itself."""
    tiny.make(place / "source", "qwen2_vl", tied=True)
    assert quantize("--anti_method", "none") == 0
    assert "lm_head.weight" not in reader.read(place / "out").tensors


def test_tensors_without_a_parameter_are_carried_over(place):
    """Checkpoints of older revisions hold buffers that the library does not write."""
    source, name = (
        tiny.make(place / "source", "llava", dtype="float16"),
        "vision_tower.vision_model.embeddings.position_ids",
    )
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, name: torch.arange(17)[None]}, source / "model.safetensors", {"format": "pt"})
    assert quantize("--anti_method", "none") == 0
    assert name in reader.read(place / "out").tensors


def test_its_failure_is_one_line(place, capsys):
    """It has no m4 for LLaVA."""
    tiny.make(place / "source", "llava")
    assert quantize("--anti_method", "m4") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: msmodelslim failed: ") and error.count("\n") == 1
    assert {path.name for path in place.iterdir()} == {"source", "images", "cwd"}
