"""From a Python program: the same choices, the same lines and the same check as on the command line."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import quant
from quant import Calibrator, QuantConfig, QuantError, UsageError
from quant.base.console import Reporter
from quant.commands import quantize
from quant.commands.cli import main

ROOT = Path(__file__).parent.parent
VARIES = re.compile(r"[0-9.]+ s\b|peak memory.*|result .*")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    class World:
        root = tmp_path_factory.mktemp("library")
        source = tiny.make(root / "src", "qwen2_vl")
        images = tiny.make_images(root / "images", 2)

    return World()


def lines(text: str) -> list[str]:
    """What was printed, without the times and the place."""
    return [VARIES.sub("", line).rstrip() for line in text.splitlines()]


def test_choices_that_nobody_made_are_those_of_the_command_line():
    parser = argparse.ArgumentParser()
    quantize.add_arguments(parser)
    assert quantize.quant_config(parser.parse_args(["--model_path", "x"])) == QuantConfig()
    assert QuantConfig().anti_method == "m2"
    described = parser.format_help()
    for choice in ("anti_method", "act_method", "part_file_size", "seed", "engine", "trust_remote_code"):
        flag = described[described.index(f"--{choice} ", described.index("input and output")) :]
        assert " ".join(flag[: flag.index(")")].split()).endswith(
            f"(default: {QuantConfig.model_fields[choice].default}"
        ), choice
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `--anti_method"))
    assert row.replace("\\|", "/").split("|")[2].strip() == QuantConfig().anti_method


def test_the_flags_own_name_of_the_device():
    assert (
        QuantConfig(device_type="cpu") == QuantConfig(dev_type="cpu") == QuantConfig(device_type="cpu", dev_type="cpu")
    )
    assert QuantConfig(device_type=None, dev_type="cpu").dev_type == "cpu"
    with pytest.raises(UsageError, match="device_type='cpu' and dev_type='npu': .* leave one out"):
        QuantConfig(device_type="cpu", dev_type="npu")
    with pytest.raises(UsageError, match="dev_type='tpu'"):
        QuantConfig(device_type="tpu")


def test_a_run_tells_what_the_command_line_tells(world, tmp_path, capsys):
    words = ["quantize", "--model_path", world.source, "--calib_images", world.images, "--device_type", "cpu"]
    assert main([str(word) for word in [*words, "--save_directory", tmp_path / "cli"]]) == 0
    wanted = lines(capsys.readouterr().out)
    calibrator = Calibrator(world.source, QuantConfig(device_type="cpu"), world.images)
    assert calibrator.run() is calibrator
    calibrator.save(tmp_path / "python")
    got = lines(capsys.readouterr().out)
    assert (
        got == wanted
        and any(line.startswith("model ") for line in got[:2])
        and got[-1].startswith("check    nothing wrong for MindIE")
    )


def test_it_can_be_silenced_and_told_where_to_print(world, tmp_path, capsys):
    config = QuantConfig(anti_method="none", dev_type="cpu")
    Calibrator(world.source, config, world.images, quiet=True).run(tmp_path).save(tmp_path / "one")
    assert capsys.readouterr().out == ""
    log = tmp_path / "log"
    reporter = Reporter(quiet=True, log_file=str(log))
    Calibrator(world.source, config, world.images, reporter).run(tmp_path).save(tmp_path / "two")
    assert capsys.readouterr().out == "" and "check    nothing wrong" in log.read_text()


def test_what_a_server_would_refuse_is_said_after_saving(world, tmp_path, capsys):
    """A checkpoint without its tokenizer can be calibrated on prepared inputs; no server would load the result."""
    inputs = Calibrator(world.source, QuantConfig(), world.images)
    inputs.prepare()
    source = shutil.copytree(world.source, tmp_path / "src")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (source / name).unlink(missing_ok=True)
    calibrator = Calibrator(source, QuantConfig(anti_method="none"), inputs.samples.inputs).run(tmp_path)
    with pytest.raises(QuantError, match=r"is written, but breaks rules of MindIE and vLLM-Ascend: tokenizer;"):
        calibrator.save(tmp_path / "out")
    assert "error: tokenizer" in capsys.readouterr().out
    assert (tmp_path / "out" / "quant_model_description.json").is_file()
    calibrator.save(tmp_path / "other", ["compressed-tensors"])  # has rules of its own


def test_float32_is_for_comparing_and_is_not_checked(world, tmp_path, capsys):
    config = QuantConfig(anti_method="none", dtype="float32")
    Calibrator(world.source, config, world.images).run(tmp_path).save(tmp_path / "out")
    assert capsys.readouterr().out.splitlines()[-1].startswith("check    left out")


def test_the_door_imports_torch_only_for_the_calibrator():
    script = (
        "import sys, quant; quant.QuantConfig(); assert 'torch' not in sys.modules;"
        "quant.Calibrator; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    assert quant.Calibrator is Calibrator
