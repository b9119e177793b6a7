"""The shape of the code: imports run downward only, modules stay small, nothing slow is imported for --help."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quant.base.choices import METHODS, ROUNDINGS, SCHEMES
from quant.commands.cli import COMMANDS
from quant.families import FAMILIES, script_of

ROOT = Path(__file__).parent.parent
# Rooms of quant/, from the top down: a module imports from its own room, or from rooms below it. docs/architecture.md
# draws this table.
ROOMS = (
    "commands",
    "report",
    "servers",
    "serve",
    "compare",
    "evaluate",
    "verify",
    "calibrate",
    "export",
    "model",
    "inputs",
    "onnx",
    "arithmetic",
    "families",
    "files",
    "base",
)
# What judges a result shares nothing with what made it but the format and the arithmetic; the servers' rules stand
# alone.
FORBIDDEN = {
    "verify": {"calibrate"},
    "evaluate": {"calibrate"},
    "serve": {"calibrate"},
    "compare": {"calibrate"},
    "servers": set(ROOMS) - {"servers", "families", "files", "base"},
}
SCRIPTS = (*map(script_of, FAMILIES.values()), "quant/ppocr/quant_ppocr.py")
MODELS = {Path(script).parent.name for script in SCRIPTS}  # folders that hold a script and nothing else


def modules():
    """Every module of the package with its room; "" for those that stand in quant/ itself."""
    for file in sorted((ROOT / "quant").rglob("*.py")):
        parts = file.relative_to(ROOT / "quant").parts
        yield file, parts[0] if len(parts) > 1 else ""


def imported_rooms(file: Path):
    """(room, line) of every import from our own package, wherever in the module it stands."""
    for target, line in imports_by_line(file):
        if len(target) > 1 and target[1] in (*ROOMS, *MODELS):
            yield target[1], line


def imports_by_line(file: Path):
    """(("quant", room, module, name), line) of every import from our own package, wherever in the module; shorter where
    the import is.
    """
    package = ("quant", *file.relative_to(ROOT / "quant").parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            target = (*base, *(node.module or "").split(".")) if node.module else base
            names = [(*target, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name[0] == "quant")


def imported_modules(file: Path) -> set[Path]:
    """The modules of our own package that a module imports, wherever in it."""
    found = set()
    for target, _ in imports_by_line(file):
        for length in range(1, len(target) + 1):
            path = ROOT.joinpath(*target[:length])
            found |= {place for place in (path.with_suffix(".py"), path / "__init__.py") if place.is_file()}
    return found - {file}


def test_no_module_is_dead():
    """Each is reached from a door: a script, python -m quant, `from quant import ...`, a command, which cli.py imports
    by its name, or a choice of one of the tables, which is loaded by its name.
    """
    package = ROOT / "quant"
    ahead = [
        package / "__init__.py",
        package / "__main__.py",
        *(ROOT / script for script in SCRIPTS),
    ]
    ahead += [package / "commands" / f"{name.replace('-', '_')}.py" for name in COMMANDS]
    places = [choice.place for table in (METHODS, SCHEMES, ROUNDINGS) for choice in table.values() if choice.place]
    places += [family.processing.own.place for family in FAMILIES.values() if family.processing.own]
    ahead += [package / (place.partition(":")[0].replace(".", "/") + ".py") for place in places]
    reached = set()
    while ahead:
        if (file := ahead.pop()) not in reached:
            reached.add(file)
            ahead += imported_modules(file)
    assert {file for file, _ in modules()} == reached


def test_arrows_run_downward():
    level = {room: number for number, room in enumerate(ROOMS)}
    wrong = []
    for file, room in modules():
        if room in MODELS or not room:
            continue  # scripts, and the package's doors: quant, library, __main__
        assert room in level, f"{file}: no room of ROOMS"
        for other, line in imported_rooms(file):
            if other in MODELS or level[other] < level[room] or other in FORBIDDEN.get(room, ()):
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {other}")
    assert not wrong
    assert {room for _, room in modules()} == {"", *ROOMS, *MODELS}, "a room that is gone, or one that is new"


def test_folders_of_models_hold_a_script_and_nothing_else():
    for model in MODELS:
        assert [file.name for file in (ROOT / "quant" / model).glob("*.*")] == [f"quant_{model}.py"]


@pytest.mark.parametrize("script", [*SCRIPTS, "-m quant", *(f"-m quant {command}" for command in COMMANDS)])
def test_help_is_fast_and_needs_no_torch(script, tmp_path):
    # An empty torch that fails on import stands before the real one.
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported for --help')")
    words = script.split()
    command = [sys.executable, *(words if words[0] == "-m" else [str(ROOT / words[0])]), "--help"]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "COLUMNS": "80"},
        )
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(times) < 1
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    if "quantize" in script or "quant_" in script and "ppocr" not in script:
        for flag in (
            "--model_path",
            "--calib_images",
            "--anti_method",
            "--mindie_format",
            "--part_file_size",
            "--disable_names",
            "--dry_run",
        ):
            assert flag in done.stdout


def test_modules_stay_readable():
    long = {file.name: lines for file, _ in modules() if (lines := len(file.read_text().splitlines())) > 300}
    assert not long, "extract a verb"
