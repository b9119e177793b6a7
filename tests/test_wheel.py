"""What `pip install .` brings: a wheel in an environment of its own runs every command, from any directory."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import tiny
from PIL import Image

import quant
from quant.commands.cli import COMMANDS, CONSOLE

ROOT = Path(__file__).resolve().parent.parent
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory) -> Path:
    """What git has, so that nothing is built inside the checkout."""
    tree = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "out")
    for name in ("quant", "calibImages"):
        shutil.copytree(ROOT / name, tree / name, ignore=skip)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    return tree


def build(tree: Path, kind: str, out: Path) -> Path:
    words = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(words, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(source_tree, tmp_path_factory) -> Path:
    return build(source_tree, "wheel", tmp_path_factory.mktemp("dist"))


class Installed:
    """The wheel in an environment that has what the wheel needs, and not this checkout."""

    def __init__(self, root: Path, wheel: Path):
        self.root, self.bin = root, root / "venv" / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "venv")], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)], check=True)
        (site,) = (root / "venv").glob("lib/python*/site-packages")
        (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.place = root / "elsewhere"
        self.place.mkdir()

    def __call__(self, *words, code: int = 0, program: tuple[str, ...] = ("python", "-m", "quant")) -> str:
        command = [str(self.bin / program[0]), *program[1:], *map(str, words)]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, cwd=self.place, capture_output=True, text=True, env=clean)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


def test_all_that_is_in_the_checkout_is_in_the_wheel(wheel):
    files = {
        f"quant/{file.relative_to(base).as_posix()}"
        for base, folder in ((ROOT / "quant", ROOT / "quant"), (ROOT, ROOT / "calibImages"))
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
    }
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        text = archive.read(metadata).decode()
        licence = [archive.read(name) for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert inside == files
    assert f"\nVersion: {quant.__version__}\n" in text and "\nLicense-Expression: Apache-2.0\n" in text
    assert licence == [(ROOT / "LICENSE").read_bytes()]


def test_a_wheel_can_be_made_from_the_source_archive(source_tree, wheel, tmp_path):
    archive = build(source_tree, "sdist", tmp_path)
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    (tmp_path / "again").mkdir()
    with zipfile.ZipFile(build(tree, "wheel", tmp_path / "again")) as again, zipfile.ZipFile(wheel) as first:
        assert sorted(again.namelist()) == sorted(first.namelist())


def test_the_console_command_and_the_version(installed):
    assert installed("--version", program=(CONSOLE,)) == f"quant {quant.__version__}\n" == installed("--version")
    assert installed("--help", program=(CONSOLE,)).startswith(f"usage: {CONSOLE} ")
    where = installed(program=("python", "-c", "import quant; print(quant.__file__, quant.__version__)"))
    assert where.startswith(str(installed.root / "venv")) and where.split()[1] == quant.__version__


def test_every_command_explains_itself(installed):
    lines = [f"main([{name!r}, '--help'])" for name in COMMANDS]
    code = "from quant.commands.cli import main\n" + "".join(
        f"try:\n    {line}\nexcept SystemExit as end:\n    assert end.code == 0\n" for line in lines
    )
    said = installed(program=("python", "-c", code))
    assert said.count("usage: ") == len(COMMANDS)


def test_every_command_runs_with_what_is_shipped(installed):
    place = installed.place
    tiny.make(place / "SRC", "qwen2_vl")
    few = ["--num_samples", 1, "--device_type", "cpu"]
    installed("quantize", "--model_path", "SRC", "--save_directory", "OUT", *few, program=(CONSOLE,))
    recipe = json.loads((place / "OUT" / "quant_recipe.json").read_text())
    assert recipe["tokens"]["image"] and recipe["tokens"]["answer"], "photographs and text are shipped"
    lenient = ["--threshold", "kl=9", "top1=0", "snr=-99", "clipped=1"]
    installed("verify", "OUT", "--model_path", "SRC", "--json", "v.json", "--tokens", 0, *few, *lenient)
    shown = json.loads((place / "v.json").read_text())["samples"]
    assert shown[0]["name"] in {file.name for file in (ROOT / "calibImages" / "heldout").iterdir()}
    Image.new("RGB", (56, 56), "red").save(place / "red.png")
    (place / "q.jsonl").write_text('{"image": "red.png", "prompt": "Which colour?", "answers": "red"}\n')
    asked = ["--data", "q.jsonl", "--json", "e.json", "--max_new_tokens", 1, "--device_type", "cpu"]
    installed("evaluate", "--quantized", "OUT", *asked)
    installed("report", "OUT", "--verify", "v.json", "--evaluation", "e.json", program=(CONSOLE,))
    assert "data:image/jpeg" in (place / "report.html").read_text(), "the shipped photographs are shown"
    installed("check", "OUT", "--target", "all")
    installed("handoff", "OUT", "--server", "mindie", "--out", "HANDOFF")
    installed("export", "OUT", "OUT2", "--act", "dynamic")
    installed("dump", "A", "--model_path", "SRC", *few)
    installed("compare", "A", "A")
    installed("sizes", "OUT", "--image", "720x1280")
    installed("embed-tokens", "SRC", "embed_tokens.bin")
    assert "coco30.json" in installed("fetch-coco", "--help")
    installed(program=("python", "-c", "from quant.base.config import COCO_LIST as x; assert x.is_file()"))
