"""make demo: the two small models of this folder, which read text in images, quantized by the scripts a user calls and
scored before and after.

Per model: plain rounding, m2 and m4, calibrated on the photographs of calibImages/ mixed with drawn text; `evaluate` on
unseen images, float and int8 side by side; then `verify` and `report` of the m2 export. Every step is a command line
that is printed before it runs, so that it can be repeated by hand with a real model. Everything goes to out/.

    python examples/demo.py [--count 200] [qwen2vl llava]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"
SCRIPTS = {"qwen2vl": "quant/qwen2vl/quant_qwen2vl.py", "llava": "quant/llava/quant_llava.py"}
METHODS = ("none", "m2", "m4")
CALIBRATION_SEED, EVALUATION_SEED = 2, 1  # the models were trained on seed 0
NOTES = {
    "quant_model_weight_w8a8.safetensors": "int8 weights and scales; the rest float",
    "quant_model_description.json": "W8A8 or FLOAT, for every tensor",
    "config.json": "the source's, with `quantize` and the dtype",
    "quant_recipe.json": "choices, versions, calibration set",
    "quant_run.json": "what each block measured",
}


def step(*words, may_fail: bool = False) -> None:
    """Print a command and run it; end the demo where it fails. may_fail: exit code 1 is an answer, not a failure."""
    print("\n$ python " + " ".join(str(word).replace(f"{ROOT}/", "") for word in words), flush=True)
    # The models are tiny: a second thread would only wait for the first.
    code = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ).returncode
    if code and not (may_fail and code == 1):
        sys.exit(code)


def calibration_set() -> Path:
    """The shipped photographs and a few drawn images, with a prompt each, as a JSONL."""
    folder = OUT / "calibration"
    step("examples/data.py", folder, "--count", 12, "--seed", CALIBRATION_SEED)
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    lines = [{"image": line["image"], "prompt": line["prompt"]} for line in lines]
    for photo in sorted((ROOT / "calibImages").glob("*.jpg")):
        shutil.copy(photo, folder)
        lines.append({"image": photo.name, "prompt": "What is written?"})
    (folder / "calibration.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return folder / "calibration.jsonl"


def holdings(directory: Path) -> None:
    """What an export holds, a line per file."""
    print(f"\n{directory.relative_to(ROOT)} holds")
    files = sorted(directory.iterdir())
    for file in files:
        if file.name in NOTES:
            print(f"  {file.name:<36} {file.stat().st_size / 1e3:5.0f} kB  {NOTES[file.name]}")
    print(
        f"  and {sum(file.name not in NOTES for file in files)} files of the source: tokenizer, processor, chat"
        " template",
        flush=True,
    )


def scores(file: Path) -> tuple[float, float]:
    """(float, int8) in percent, of an evaluation's JSON."""
    right = [side["table"]["Right"] for side in json.loads(file.read_text())["sides"]]
    return tuple(100 * row["right"] / row["of"] for row in right)


def run(name: str, calibration: Path, questions: Path) -> dict[str, float]:
    """Quantize and score one model; method -> percent right, "float" among them."""
    source, result = ROOT / "examples" / f"tiny-{name}", {}
    for method in METHODS:
        out = OUT / f"{name}-{method}"
        step(
            SCRIPTS[name],
            "--model_path",
            source,
            "--calib_images",
            calibration,
            "--calib_text",
            "none",  # these models know the words of their own drawn text, and no other language
            "--save_directory",
            out,
            "--anti_method",
            method,
            "--device_type",
            "cpu",
        )
        step(
            "-m",
            "quant",
            "evaluate",
            "--model_path",
            source,
            "--quantized",
            out,
            "--data",
            questions,
            "--match",
            "exact",
            "--max_new_tokens",
            8,
            "--results",
            OUT / f"{name}.results.jsonl",
            "--json",
            OUT / f"{name}-{method}.evaluation.json",
            "--device_type",
            "cpu",
            may_fail=True,
        )
        result["float"], result[method] = scores(OUT / f"{name}-{method}.evaluation.json")
    best = OUT / f"{name}-m2"
    holdings(best)
    step(
        "-m",
        "quant",
        "verify",
        best,
        "--model_path",
        source,
        "--images",
        calibration,
        "--json",
        OUT / f"{name}.verify.json",
        "--device_type",
        "cpu",
        may_fail=True,
    )
    step(
        "-m",
        "quant",
        "report",
        best,
        "--verify",
        OUT / f"{name}.verify.json",
        "--evaluation",
        OUT / f"{name}-m2.evaluation.json",
        "--peers",
        OUT / f"{name}-m4.evaluation.json",
        OUT / f"{name}-none.evaluation.json",
        "--images",
        calibration,
        "--output",
        OUT / f"{name}.html",
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", choices=[*SCRIPTS, []], default=[], help="which of them (default: both)")
    parser.add_argument("--count", type=int, default=200, help="unseen images to score (default: 200)")
    args = parser.parse_args()
    start = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    calibration = calibration_set()
    step("examples/data.py", OUT / "unseen", "--count", args.count, "--seed", EVALUATION_SEED)
    table = {name: run(name, calibration, OUT / "unseen" / "questions.jsonl") for name in args.models or SCRIPTS}
    print(f"\nExact answers on {args.count} unseen images, percent\n")
    print(
        f"  {'model':<10}" + "".join(f"{column:>12}" for column in ("float", *(f"int8 {method}" for method in METHODS)))
    )
    for name, row in table.items():
        print(f"  {name:<10}" + "".join(f"{row[column]:12.1f}" for column in ("float", *METHODS)))
    print(f"\nReports: {', '.join(f'out/{name}.html' for name in table)}.  {time.monotonic() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
