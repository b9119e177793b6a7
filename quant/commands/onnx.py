"""python -m quant onnx: a float ONNX model of the PP-OCR line to int8; and what evaluate, verify, check and dump do
where they are given such a model or export.
"""

import argparse
import json
import re
import textwrap
from pathlib import Path

from ..base.errors import QuantError, UsageError

TASKS = ("det", "rec", "cls", "table", "layout", "formula")
MISSING = "onnx, onnxruntime and OpenCV are needed for this; pip install 'ascend-vlm-quant[ocr]' brings them"
COLUMNS = 80
EPILOG = (
    "Without labels the float model's own answers are what int8 is held against. docs/ppocr.md has the label files,"
    " what is measured, and how to go on with AMCT and ATC."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--model_path",
        required=True,
        metavar="FILE",
        help="a float .onnx, or a folder with a Paddle model (paddle2onnx)",
    )
    parser.add_argument(
        "--calib_images",
        required=True,
        metavar="PATH",
        help="a folder of images, with PaddleOCR's labels.txt, labels.jsonl or COCO's labels.json, or such a file",
    )
    parser.add_argument(
        "--save_directory", required=True, metavar="OUT", help="where the result goes: empty or not there yet"
    )
    parser.add_argument("--task", choices=TASKS, help="(default: the one that the model's outputs fit)")
    parser.add_argument(
        "--max_drop",
        type=float,
        default=1.0,
        metavar="P",
        help="points of 100 that int8 may lose on held-out images; layers stay float until it holds (default: 1)",
    )
    parser.add_argument(
        "--input_shape",
        metavar="1,3,H,W",
        help="fix the image input's shape (default: as the model has it, dynamic sizes too)",
    )
    parser.add_argument(
        "--characters", metavar="FILE", help="characters or tokens, one a line, of a model that does not bring its own"
    )
    parser.add_argument("--num_samples", type=int, metavar="N", help="take N of the images (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of images (default: 0)")
    parser.add_argument(
        "--plain", action="store_true", help="every layer int8 with the ranges that were seen, for comparison"
    )
    parser.add_argument("--log_file", metavar="FILE", help="append what is printed to FILE, with the time")
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def run(args: argparse.Namespace) -> int:
    """0. Raises UsageError for what cannot be done as it was asked for, QuantError for what fails."""
    shape = input_shape(args.input_shape)
    if args.max_drop < 0:
        raise UsageError(f"--max_drop {args.max_drop:g}: 0 or more")
    if args.num_samples is not None and args.num_samples < 1:
        raise UsageError(f"--num_samples {args.num_samples}: at least 1")
    from ..base.console import Reporter

    demand()
    from ..onnx.job import Options, quantize

    options = Options(
        args.task,
        args.max_drop,
        shape,
        Path(args.characters) if args.characters else None,
        args.num_samples,
        args.seed,
        args.plain,
    )
    reporter = Reporter(args.quiet, args.log_file)
    record = quantize(Path(args.model_path), Path(args.calib_images), Path(args.save_directory), options, reporter)
    for line in summary(record):
        reporter.line(line)
    return 0


def script() -> int:
    """quant/ppocr/quant_ppocr.py: the same flags."""
    from .cli import Guard

    parser = argparse.ArgumentParser(description="Quantize an ONNX model of the PP-OCR line to int8 for Ascend.")
    add_arguments(parser)
    args = parser.parse_args()
    with Guard() as guard:
        guard.code = run(args)
    return guard.code


def demand() -> None:
    """Raises UsageError where the packages of the extra [ocr] are not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("onnx", "onnxruntime", "cv2", "shapely", "pyclipper") if find_spec(name) is None]
    if missing:
        raise UsageError(f"{missing[0]} is not installed: {MISSING}")


def input_shape(text: str | None) -> tuple[int, ...] | None:
    """ "1,3,48,320" -> (1, 3, 48, 320). Raises UsageError for anything else."""
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,4}(,[1-9]\d{0,4}){3}", text):
        raise UsageError(f"--input_shape {text}: four sizes are expected, as in 1,3,48,320")
    return tuple(map(int, text.split(",")))


def summary(record: dict) -> list[str]:
    """What came of a job."""
    held, share = record["held_out"], record["multiply_adds"]["int8"]
    floats = [layer["name"] for layer in record["layers"] if not layer["int8"]]
    lines = [f"{'on ' + str(held['images']) + ' held-out images':<32}{'float':>9}{'int8':>9}   ({held['against']})"]
    for metric, points in held["scores"]["float"].items():
        lines.append(f"{metric:<32}{points:>9.2f}{held['scores']['int8'][metric]:>9.2f}")
    sizes = [record[part]["bytes"] / 1e6 for part in ("source", "model")]
    lines.append(f"{share:.1%} of the multiply-adds in int8, {sizes[0]:.2f} MB -> {sizes[1]:.2f} MB")
    told = f"{len(floats)} of {len(record['layers'])} layers float"
    for place, name in enumerate(floats):
        more = f"{': ' if place == 0 else ', '}{name}"
        if len(told + more) > COLUMNS - len(", ..."):
            told += ", ..."
            break
        told += more
    return [*lines, told]


def write_json(place: str | None, data: dict) -> None:
    """For --json. Raises QuantError where it cannot be written."""
    if place:
        try:
            Path(place).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as err:
            raise QuantError(f"--json {place}: {err.strerror}") from None


def evaluate(args: argparse.Namespace) -> int:
    """`evaluate --model_path X.onnx --quantized OUT --data labels.txt`: 0 within --max_drop, else 1. Raises UsageError,
    QuantError as onnx.evaluate does.
    """
    from ..base.console import Reporter

    demand()
    from ..onnx.evaluate import evaluate as score

    if not args.quantized or not args.model_path:
        raise UsageError("--model_path X.onnx and --quantized OUT are both needed, to score an ONNX export")
    reporter = Reporter(args.quiet, args.log_file)
    result = score(Path(args.model_path), Path(args.quantized), args.data, args.num_samples, args.seed)
    first, *_ = result["metrics"]
    heading = f"{result['items']} images"
    reporter.line(f"{heading:<24}{'float':>9}{'int8':>9}{'difference':>12}")
    for metric, (one, other) in result["metrics"].items():
        gap = f"{other - one:>+12.2f}"
        between = f"   95 %: {result['interval'][0]:+.2f} to {result['interval'][1]:+.2f}" if metric == first else ""
        reporter.line(f"{metric:<24}{one:>9.2f}{other:>9.2f}{gap}{between}")
    lost = result["metrics"][first][0] - result["metrics"][first][1]
    reporter.line(f"{'within' if lost <= args.max_drop else 'OUTSIDE'} --max_drop {args.max_drop:g}")
    write_json(args.json, result | {"max_drop": args.max_drop})
    return 0 if lost <= args.max_drop else 1


def verify(args: argparse.Namespace) -> int:
    """`verify OUT --model_path X.onnx --images DIR`: 0 where nothing is damaged and every layer is within the
    threshold, else 1. Raises UsageError, QuantError as onnx.verify does.
    """
    from ..base.console import Reporter

    demand()
    from ..onnx.verify import FALLS_OFF
    from ..onnx.verify import verify as compare

    if not args.images:
        raise UsageError("--images is needed: a folder of images that the model is for")
    reporter = Reporter(args.quiet, args.log_file)
    result = compare(Path(args.quantized), Path(args.model_path), args.images, args.num_samples, args.seed)
    reporter.line(f"{'layer':<36}{'op':<14}{'':<6}{'dB':>7}{'of its own':>12}")
    for row in result["layers"]:
        mark = "  <-" if row["name"] == result["first"] else ""
        own = "" if row["own_db"] is None else f"{row['own_db']:>12.1f}"
        name = row["name"] if len(row["name"]) < 36 else "..." + row["name"][-32:]
        reporter.line(f"{name:<36}{row['op']:<14}{'int8' if row['int8'] else 'float':<6}{row['db']:>7.1f}{own}{mark}")
    for name, value in result["outputs"].items():
        reporter.line(f"output {name}: {value:.1f} dB")
    for line in result["damage"]:
        reporter.line(f"DAMAGED: {line}")
    if result["first"]:
        reporter.line(f"falls off first at {result['first']} (below {FALLS_OFF:g} dB)")
    reporter.line("passed: no tensor is damaged" if result["passed"] else "FAILED")
    write_json(args.json, result)
    return 0 if result["passed"] else 1


def check(args: argparse.Namespace) -> int:
    """`check OUT`: 0 without an error, else 1. Raises UsageError, QuantError for what is no export."""
    demand()
    from ..onnx.check import check as rules

    findings = rules(Path(args.export))
    for finding in findings:
        print(f"{finding.level}: {finding.rule}")
        for text in (finding.what, f"fix: {finding.fix}"):
            print(textwrap.fill(text, COLUMNS, initial_indent="  ", subsequent_indent="    "))
    errors = sum(finding.level == "error" for finding in findings)
    print(args.export)
    told = f"errors: {errors}, warnings: {len(findings) - errors}" if findings else "nothing wrong"
    print(f"{told}, by what is documented of AMCT and ATC")
    return 1 if errors else 0


def dump(args: argparse.Namespace) -> int:
    """`dump DUMP --model_path X.onnx --images DIR`: 0. Raises UsageError, QuantError as compare.onnx_dump does."""
    demand()
    from ..compare.onnx_dump import dump as write

    if not args.images and not args.inputs:
        raise UsageError("--images or --inputs is needed: what the model is to read")
    manifest = write(Path(args.model_path), args.directory, args.images, args.inputs, args.modules, args.num_samples)
    if not args.quiet:
        print(f"{len(manifest['features'])} features of {len(manifest['samples'])} samples in {args.directory}")
    return 0
