"""What a new user runs into in the first hour, one test each."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import tiny

from quant.base import console
from quant.base.config import QuantConfig
from quant.base.console import Reporter
from quant.calibrate.calibrator import Calibrator
from quant.calibrate.record import block_line
from quant.calibrate.summary import dry_run
from quant.commands.cli import main
from quant.commands.evaluate import _flip_lines
from quant.evaluate.scoring import compare
from quant.servers.rules import check


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("first_hour")
    return SimpleNamespace(
        root=root, source=tiny.make(root / "src", "qwen2_vl"), images=tiny.make_images(root / "i", 2)
    )


def quantize(world, *flags) -> int:
    words = ["--model_path", world.source, "--calib_images", world.images, "--device_type", "cpu"]
    return main(["quantize", *map(str, [*words, "--anti_method", "none", "--calib_text", "none", *flags])])


def test_the_home_directory_behind_an_equals_sign(world, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(world.root)
    assert quantize(world, "--save_directory=~/out", "--log_file=~/log") == 0
    assert (tmp_path / "out" / "config.json").is_file() and (tmp_path / "log").is_file()
    assert not (world.root / "~").exists()
    assert main(["check", "~/out"]) == 0


@pytest.mark.parametrize("count", ["0", "-1"])
def test_a_number_of_workers_that_is_none(world, tmp_path, capsys, count):
    assert quantize(world, "--save_directory", tmp_path / "out", "--num_workers", count) == 2
    assert f"--num_workers {count}: at least 1" in capsys.readouterr().err


def test_resume_with_other_pixels_names_the_flag(world, tmp_path, capsys):
    assert quantize(world, "--save_directory", tmp_path / "out") == 0
    capsys.readouterr()
    assert quantize(world, "--save_directory", tmp_path / "out", "--resume", "--max_pixels", 28 * 28 * 8) == 2
    said = capsys.readouterr().err
    assert "--max_pixels was left out and is 6272" in said and "{" not in said


def test_errors_are_in_the_log_file(world, tmp_path, capsys):
    log = tmp_path / "log"
    assert quantize(world, "--save_directory", world.source / "inside", "--log_file", log) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and re.search(r"^\d{4}-.* " + re.escape(error) + "$", log.read_text(), re.M)


def test_bugs_are_in_the_log_file(world, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("quant.commands.quantize.quant_config", broken)
    with pytest.raises(ZeroDivisionError):
        quantize(world, "--log_file", tmp_path / "log")
    assert (
        "Traceback" in (tmp_path / "log").read_text() and "ZeroDivisionError: a bug" in (tmp_path / "log").read_text()
    )


def test_the_time_left_is_that_of_the_job_and_told_when_piped(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "EVERY", 0.0)
    calibrator = Calibrator(world.source, QuantConfig(anti_method="none", calib_text="none"), world.images, Reporter())
    calibrator.run(tmp_path).close()
    shares = [int(share) for share in re.findall(r"all blocks: (\d+)% done, about .* left", capsys.readouterr().out)]
    blocks = sum(tower.used(calibrator.checkpoint.config) for tower in calibrator.family.towers)
    assert len(shares) == blocks - 1 and shares == sorted(shares) and 0 < shares[0] and shares[-1] < 100


def test_time_left_by_a_clock(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with Reporter().progress("job", 100) as advance:
        for moment in (10, 29, 31, 50, 62):
            now[0] = float(moment)
            advance(10)
    assert capsys.readouterr().out == "job: 30% done, about 1 min 12 s left\njob: 50% done, about 1 min 2 s left\n"


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_a_block_line_fits_the_terminal(tmp_path, family, width):
    source, images = tiny.make(tmp_path / "src", family), tiny.make_images(tmp_path / "i", 1)
    calibrator = Calibrator(source, QuantConfig(), images, SimpleNamespace(width=width, line=print))
    for tower in calibrator.family.towers:
        entry = {"block": tower.block(1)[:-1], "int8": ["x"] * 12, "snr_plain_db": 12.34, "snr_db": 45.67}
        entry["snr_held_out_db"] = 45.6
        line = block_line(entry | {"seconds": 1234.5}, calibrator)
        assert (
            len(line) <= width
            and "12.3 -> 45.7 dB" in line
            and "45.6 unseen" in line
            and line.split()[0].endswith(".1")
        )


def test_where_all_flips_are_listed_is_the_file_that_was_given():
    flip = {"lost": True, "predictions": ["a", "b"], "answers": ["a"], "where": "x:1", "prompt": "?"}
    assert "and 2 more; e.json lists all" in _flip_lines([flip] * 12, "e.json")[-2]
    assert "and 2 more; --json FILE lists all" in _flip_lines([flip] * 12, None)[-2]


@pytest.mark.parametrize("count", [2, 20, 200])
def test_an_interval_without_a_difference_is_not_nothing(count):
    """The largest share p of answers that differ with which n of n alike still happen in 2.5 % of samples."""
    found = compare([1.0] * count, [1.0] * count)
    share = found.high / 100
    assert found.points == 0 and found.low == -found.high and math.isclose((1 - share) ** count, 0.025)
    assert found.by == "exact: no answer differs" and compare([1.0] * 9 + [0.0], [1.0] * 10).by == "paired bootstrap"


def test_what_is_written_about_the_float_model_and_its_other_formats_stay_behind(world, tmp_path):
    source = tiny.make(tmp_path / "src", "qwen2_vl")
    for name in ("README.md", "README_zh.md", "model-q4.GGUF", "LICENSE", "notes.txt"):
        (source / name).write_text(f"{name} of the float model")
    words = ["--model_path", source, "--calib_images", world.images, "--save_directory", tmp_path / "out"]
    assert main(["quantize", *map(str, words), "--anti_method", "none", "--device_type", "cpu"]) == 0
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"LICENSE", "notes.txt", "README.md"} <= names and not {"README_zh.md", "model-q4.GGUF"} & names
    assert "of the float model" not in (tmp_path / "out" / "README.md").read_text()
    assert [f for f in check(tmp_path / "out", source=source) if f.rule == "side-files"] == []


def test_a_dry_run_says_which_block(world, capsys):
    config = QuantConfig(disable_names=("*.down_proj", "model.layers.1.mlp.*"), calib_text="none")
    dry_run(Calibrator(world.source, config, world.images, Reporter()))
    said = capsys.readouterr().out
    assert re.search(r"mlp\.gate_proj +1 x .* int8  blocks 0$", said, re.M)
    assert re.search(r"mlp\.gate_proj +1 x .* float \[\d\]  blocks 1$", said, re.M)
    assert re.search(r"1 x post_attention_layernorm -> mlp\.gate_proj, mlp\.up_proj  blocks 0$", said, re.M)
    assert json.loads((world.source / "config.json").read_text())["num_hidden_layers"] == 2
