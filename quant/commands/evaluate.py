"""python -m quant evaluate: the float model and what was exported from it, or two servers, on questions with known
answers.
"""

import argparse
import json
import os
from typing import TYPE_CHECKING

from ..base.errors import QuantError, UsageError
from .cli import CONSOLE, WITH_LIMITS, add_sampling, boolean

if TYPE_CHECKING:
    from ..evaluate.evaluate import Model

SHOWN_FLIPS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    models = parser.add_argument_group(
        "models", "one, or two to compare; of two the first in this order is what the other may not fall below"
    )
    models.add_argument("--model_path", metavar="DIR", help="a float checkpoint, or an .onnx")
    models.add_argument("--quantized", metavar="DIR", help="an exported W8A8 directory, computed as the NPU does")
    models.add_argument(
        "--endpoint",
        metavar="URL",
        action="append",
        default=[],
        help="an OpenAI-compatible server (vLLM-Ascend, MindIE); may be given twice",
    )
    models.add_argument(
        "--served_model",
        metavar="NAME",
        action="append",
        default=[],
        help="the name it serves the model under, one per --endpoint (default: ask the server)",
    )
    data = parser.add_argument_group("questions")
    data.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="OCRBench, TextVQA, DocVQA or MMMU as a .tsv, .json or .parquet, or a .jsonl of"
        ' {"image", "images" or "videos", "prompt", "answers"}',
    )
    data.add_argument(
        "--image_folder", metavar="DIR", help="where image paths start from (default: the data file's folder)"
    )
    data.add_argument(
        "--num_samples", type=int, metavar="N", help="take N of the questions, chosen by the seed (default: all)"
    )
    data.add_argument(
        "--match",
        choices=("contains", "exact", "vqa", "anls"),
        help="contains: OCRBench's rule; exact: nothing beside the answer; vqa: TextVQA's; anls: DocVQA's (default: the"
        " data's own)",
    )
    data.add_argument(
        "--batch_size",
        type=int,
        default=1,
        metavar="N",
        help="questions at a time: a batch of a local model, so many requests to a server (default: 1)",
    )
    data.add_argument("--max_new_tokens", type=int, default=128, metavar="N", help="longest answer (default: 128)")
    data.add_argument(
        "--max_pixels",
        type=int,
        metavar="N",
        help=f"largest area an image is resized to, locally ({WITH_LIMITS}; default: the checkpoint's)",
    )
    add_sampling(data)
    verdict = parser.add_argument_group("verdict")
    verdict.add_argument(
        "--max_drop",
        type=float,
        default=1.0,
        metavar="P",
        help="exit code 1 if the second model is more than P points of 100 below the first (default: 1)",
    )
    verdict.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the bootstrap and of --num_samples (default: 0)"
    )
    job = parser.add_argument_group("job")
    job.add_argument(
        "--results",
        metavar="FILE",
        help="log of all answers; run again with it to go on (default: DATA's name with .results.jsonl, in the user's"
        " cache, ~/.cache/ascend-vlm-quant)",
    )
    job.add_argument(
        "--json", metavar="FILE", help="write scores, flips and difference to FILE, for `python -m quant report`"
    )
    job.add_argument(
        "--device_type", choices=("npu", "cuda", "cpu"), help="of local models (default: the first that is there)"
    )
    job.add_argument(
        "--timeout", type=float, default=120, metavar="S", help="seconds a server has for an answer (default: 120)"
    )
    job.add_argument(
        "--retries", type=int, default=4, metavar="N", help="further tries of a request that failed (default: 4)"
    )
    job.add_argument(
        "--trust_remote_code",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="run code that the checkpoint brings (default: False)",
    )
    job.add_argument("--log_file", metavar="FILE", help="append what is printed to FILE, with the time")
    job.add_argument("--quiet", action="store_true", help="print errors only")


def run(args: argparse.Namespace) -> int:
    """0 within --max_drop, 1 outside or with questions unanswered, 130 when interrupted. Raises UsageError for flags or
    questions that cannot be used, QuantError for a model that cannot be run or a report that cannot be written.
    """
    from ..onnx.export import is_model

    if is_model(args.model_path) or is_model(args.quantized):
        from . import onnx

        return onnx.evaluate(args)
    _check(args)
    from pathlib import Path

    from ..base.console import Reporter
    from ..evaluate.evaluate import Results, ask, summarize
    from ..evaluate.questions import load_questions

    reporter = Reporter(args.quiet, args.log_file)
    data = load_questions(args.data, args.image_folder).some(args.num_samples, args.seed)
    models = _models(args)
    results = Results(args.results or answers_log(args.data))
    reporter.line(f"answers    kept in {results.file}; the same command again goes on from there")
    sides = []
    try:
        while models:
            name, model = models.pop(0)  # popped: one model is in memory at a time
            sides.append(ask(name, model, data, results, reporter))
            del model
    except KeyboardInterrupt:
        reporter.line(f"interrupted; what was answered is kept in {results.file}, run again to go on")
        return 130
    summary = summarize(data, sides, rule=args.match or data.rule, max_drop=args.max_drop, seed=args.seed)
    for line in lines(summary, args.json):
        reporter.line(line)
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise QuantError(f"--json {args.json}: {error.strerror}") from None
    return 0 if summary["passed"] else 1


def answers_log(data: str) -> str:
    """Where answers to the questions of the file `data` are kept unless --results says it: in the user's cache, since
    nobody looks for a new file in the folder that a command happens to run in.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, CONSOLE, f"{os.path.splitext(os.path.basename(data))[0]}.results.jsonl")


def _check(args: argparse.Namespace) -> None:
    given = [args.model_path, args.quantized, *args.endpoint]
    count = sum(bool(model) for model in given)
    if count not in (1, 2):
        raise UsageError(f"{count} models are given; one or two of --model_path, --quantized and --endpoint are needed")
    if len(args.served_model) not in (0, len(args.endpoint)):
        raise UsageError(f"--served_model is given {len(args.served_model)} times for {len(args.endpoint)} --endpoint")
    limits = {
        "max_new_tokens": 1,
        "max_pixels": 1,
        "max_frames": 1,
        "num_samples": 1,
        "batch_size": 1,
        "retries": 0,
        "max_drop": 0,
    }
    for flag, least in limits.items():
        if getattr(args, flag) is not None and not getattr(args, flag) >= least:
            raise UsageError(f"--{flag} {getattr(args, flag)}: must be at least {least}")
    if args.fps is not None and not args.fps > 0:
        raise UsageError(f"--fps {args.fps:g}: must be above 0")
    if not args.timeout > 0:
        raise UsageError(f"--timeout {args.timeout:g}: must be above 0")


def _models(args: argparse.Namespace) -> "list[tuple[str, Model]]":
    """(name in tables, model) of each. Directories and servers are looked at here: a wrong path must not show after the
    first model's hour.
    """
    from ..evaluate.endpoint import Endpoint
    from ..evaluate.local_model import LocalModel

    models: list[tuple[str, Model]] = []
    for name, directory in (("float", args.model_path), ("int8", args.quantized)):
        if directory:
            settings = dict(
                max_new_tokens=args.max_new_tokens,
                batch_size=args.batch_size,
                max_pixels=args.max_pixels,
                fps=args.fps,
                max_frames=args.max_frames,
                device=args.device_type,
                trust_remote_code=args.trust_remote_code,
            )
            models.append((name, LocalModel(directory, name == "int8", **settings)))
    served = args.served_model or [None] * len(args.endpoint)
    for number, (url, model) in enumerate(zip(args.endpoint, served), 1):
        name = f"endpoint {number}" if len(args.endpoint) > 1 else "endpoint"
        settings = dict(batch_size=args.batch_size, timeout=args.timeout, retries=args.retries)
        models.append((name, Endpoint(url, model, max_new_tokens=args.max_new_tokens, **settings)))
    return models


def lines(summary: dict, json_file: str | None = None) -> list[str]:
    """The summary for people: table, flips, difference, verdict. json_file: where all of it is written."""
    sides, count = summary["sides"], summary["data"]["questions"]
    names = [side["name"] for side in sides]
    rows = [
        [key, *(str(side["table"][key]["right"]) for side in sides), str(row["of"])]
        for key, row in sides[0]["table"].items()
    ]
    if summary["data"]["ocrbench"]:
        rows.append(
            [
                "Final Score Norm",
                *(f"{side['published']['Final Score Norm']:.1f}" for side in sides),
                "100" if count == 1000 else "",
            ]
        )
    rows.append(["Accuracy, %", *(f"{100 * _total(side)['right'] / count:.2f}" for side in sides), ""])
    width = max(len(row[0]) for row in rows)
    text = [
        "",
        *(f"{row[0]:<{width}}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in [["", *names, "of"], *rows]),
        "",
    ]
    if summary["data"]["ocrbench"] and count != 1000:
        text += [f"Final Score Norm is defined for OCRBench's 1000 items, this file has {count}", ""]
    for why, left in summary["data"]["left_out"].items():
        text += [f"left out   {left} x {why}"]
    if "flips" in summary:
        text += _flip_lines(summary["flips"], json_file)
        difference = summary["difference"]
        low, high = difference["interval"]
        text.append(
            f"difference {difference['points']:+.2f} points, {100 * difference['level']:.0f} % interval {low:+.2f} to"
            f" {high:+.2f} ({difference['by']}); {difference['lost']} lost, {difference['gained']} gained"
        )
        text.append(
            f"verdict    {'a larger drop than' if difference['exceeded'] else 'within'} --max_drop"
            f" {difference['max_drop']:g}"
        )
    for side in sides:
        if side["troubles"]:
            text.append(
                f"{side['name']:<10} "
                + ", ".join(f"{count} x {kind}" for kind, count in side["troubles"].items())
                + "; tried again where that can help"
            )
        if side["unanswered"]:
            first = side["unanswered"][0]
            text.append(
                f"{side['name']:<10} {len(side['unanswered'])} questions have no answer and count as wrong; run again"
                f" to ask them. {first['where']}: {first['why']}"
            )
    return text


def _total(side: dict) -> dict:
    """The row of the table that counts all questions: its last."""
    return list(side["table"].values())[-1]


def _flip_lines(flips: list[dict], json_file: str | None) -> list[str]:
    text = []
    for kind, lost in (("lost", True), ("gained", False)):
        chosen = [flip for flip in flips if flip["lost"] == lost]
        for flip in chosen[:SHOWN_FLIPS]:
            first, second = ("no answer" if said is None else repr(said[:60]) for said in flip["predictions"])
            wanted = " or ".join(map(repr, flip["answers"]))
            text.append(
                f"{kind:<10} {flip['where']}  {flip['prompt'][:60]!r}  wanted {wanted[:80]}:  {first} -> {second}"
            )
        if len(chosen) > SHOWN_FLIPS:
            text.append(f"{kind:<10} and {len(chosen) - SHOWN_FLIPS} more; {json_file or '--json FILE'} lists all")
    return [*text, ""] if text else []
