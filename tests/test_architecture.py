"""The shape of the code: imports run downward only, modules stay small, nothing slow is imported for --help."""
import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom up. A module may import from its own layer or from below.
LAYERS = [
    {"errors", "process"},
    {"config", "family", "int8", "safetensors_header", "safetensors_io", "config_json", "confined", "console", "images", "device", "output", "processor_files", "side_by_side", "source"},
    {"stats", "fold", "checkpoint", "encode", "ranges", "qwen2vl", "llava", "qwen2_5vl"},
    {"smoothing", "families", "empty_model", "plan", "samples", "fetch_coco", "recipe", "questions", "sizes", "ranks", "resume"},
    {"m2", "m4", "skeleton", "ascend", "vendor", "contracts", "scoring", "endpoint", "memory"},
    {"block", "runtime", "embed_tokens", "formats", "compressed_tensors", "serving", "deploy_page", "handoff"},
    # What checks a result stands below what makes it, and knows nothing of it.
    {"resemble", "audit", "audit_linear", "audit_block", "streams", "verdict", "verify", "features", "dump", "compare"},
    {"towers"},
    {"calibrator"},
    {"workload"},
    {"summary"},
    {"launch"},
    {"estimate", "evaluate", "job"},
    {"report"},
    {"commands", "cli"},
    {"__main__"},
]


def modules():
    for file in sorted((ROOT / "quant").rglob("*.py")):
        yield file, file.relative_to(ROOT / "quant").parts[0].removesuffix(".py")


def imports(file: Path):
    """(top-level room, line, whether it is imported at module level) of every import from our own package."""
    tree = ast.parse(file.read_text())
    depth = len(file.relative_to(ROOT / "quant").parts) - 1
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == depth + 1:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "quant" and node.level == 0:
            names = [(node.module.split(".") + [alias.name for alias in node.names])[1]]
        else:
            continue
        for name in names:
            yield name, node.lineno, id(node) in top


def test_arrows_run_downward():
    level = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    seen, wrong = set(), []
    for file, room in modules():
        if file.name == "__init__.py" and file.parent.name == "quant":
            continue
        if file.name.startswith("quant_"):
            room = "__main__"
        seen.add(room)
        assert room in level, f"{file.name}: which layer of LAYERS is it in?"
        wrong += [f"{file.name}:{line} imports {name}" for name, line, _ in imports(file) if level.get(name, 99) > level[room] and name != room]
    assert not wrong
    assert seen - {"__main__"} == set(level) - {"__main__"}, "LAYERS names a module that is gone"


@pytest.mark.parametrize("script", ["quant/qwen2vl/quant_qwen2vl.py", "quant/qwen2_5vl/quant_qwen2_5vl.py", "quant/llava/quant_llava.py", "-m quant", "-m quant quantize"])
def test_help_is_fast_and_needs_no_torch(script, tmp_path):
    # An empty torch that fails on import stands before the real one.
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported for --help')")
    words = script.split()
    command = [sys.executable, *(words if words[0] == "-m" else [str(ROOT / words[0])]), "--help"]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin", "COLUMNS": "80"})
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(times) < 1
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    if "quantize" in script or "quant_" in script:
        for flag in ("--model_path", "--calib_images", "--anti_method", "--mindie_format", "--part_file_size", "--disable_names", "--dry_run"):
            assert flag in done.stdout


def test_modules_stay_readable():
    long = {file.name: lines for file, _ in modules() if (lines := len(file.read_text().splitlines())) > 300}
    assert not long, "extract a verb"
