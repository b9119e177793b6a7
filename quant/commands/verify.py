"""python -m quant verify: the float model and its export on the same images, and a verdict on whose fault a difference
is.
"""

import argparse
import json
import textwrap
from pathlib import Path

from ..base.config import CALIB_IMAGES, HELD_OUT, QuantConfig
from ..base.errors import QuantError, UsageError
from ..verify.verdict import CULPRITS, ENOUGH, THRESHOLDS, decibels
from .cli import IMAGES, WITH_LIMITS, add_sampling, boolean

WIDTH = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "quantized", metavar="OUT", help="the exported directory, of either layout, of this project or of msmodelslim"
    )
    parser.add_argument("--model_path", required=True, metavar="DIR", help="the float checkpoint that it was made from")
    samples = parser.add_argument_group("samples")
    samples.add_argument(
        "--images",
        metavar="PATH",
        help=f"{IMAGES} (default: {HELD_OUT.parent.name}/ of {CALIB_IMAGES.name}/, which calibration does not see)",
    )
    samples.add_argument(
        "--prompt", metavar="TEXT", help="asked of every image without a prompt of its own (default: the family's)"
    )
    samples.add_argument(
        "--num_samples", type=int, metavar="N", help="take N of the images, chosen by the seed (default: all)"
    )
    samples.add_argument(
        "--max_pixels",
        type=int,
        metavar="N",
        help=f"largest area an image is resized to ({WITH_LIMITS}; default: the checkpoint's)",
    )
    samples.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of images (default: 0)")
    samples.add_argument(
        "--tokens",
        type=int,
        default=16,
        metavar="N",
        help="length of the answers that both models write to the first images; 0 for none (default: 16)",
    )
    add_sampling(samples)
    verdict = parser.add_argument_group("verdict")
    defaults = " ".join(f"{name}={limit:g}" for name, (limit, _) in THRESHOLDS.items())
    verdict.add_argument(
        "--threshold",
        nargs="+",
        default=[],
        metavar="NAME=X",
        help=f"what is passed (default: {defaults}); "
        + "; ".join(f"{name}: {what}" for name, (_, what) in THRESHOLDS.items()),
    )
    verdict.add_argument(
        "--json",
        metavar="FILE",
        help="write all that was measured to FILE, for `python -m quant report`; docs/verify.md describes it",
    )
    job = parser.add_argument_group("job")
    job.add_argument(
        "--device_type",
        choices=("npu", "cuda", "cpu"),
        help="default: the NPU where there is one, else CUDA, else the CPU",
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
    """0 within the thresholds, 1 outside. Raises UsageError for flags that cannot be used, QuantError for an export
    that cannot be run or a report that cannot be written.
    """
    from ..onnx.export import is_export

    if is_export(args.quantized):
        from . import onnx

        return onnx.verify(args)
    limits = thresholds(args.threshold)
    if args.tokens < 0:
        raise UsageError(f"--tokens {args.tokens}: 0 or more")
    config = QuantConfig(
        prompt=args.prompt,
        num_samples=args.num_samples,
        max_pixels=args.max_pixels,
        fps=args.fps,
        max_frames=args.max_frames,
        seed=args.seed,
        dev_type=args.device_type,
        trust_remote_code=args.trust_remote_code,
    )
    if args.json and not Path(args.json).absolute().parent.is_dir():  # better now than after the work
        raise UsageError(f"--json {args.json}: no such directory")

    from ..base.console import Reporter
    from ..verify.verify import verify

    reporter = Reporter(args.quiet, args.log_file)

    def show(record: dict) -> None:
        for line in (heading() if (record["tower"], record["index"]) == ("vision", 0) else []) + [block_line(record)]:
            reporter.line(line)

    report = verify(
        args.quantized,
        args.model_path,
        config,
        args.images,
        thresholds=limits,
        tokens=args.tokens,
        reporter=reporter,
        on_block=show,
    )
    for line in ending(report):
        reporter.line(line)
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        except OSError as err:
            raise QuantError(f"--json {args.json}: {err.strerror}") from None
    return 0 if report["passed"] else 1


def thresholds(words: list[str]) -> dict[str, float]:
    """["kl=0.2", ...] -> {"kl": 0.2, ...}. Raises UsageError for a name that is none, or a value that is no number."""
    limits = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in THRESHOLDS:
            raise UsageError(
                f"--threshold {word}: names are {', '.join(THRESHOLDS)}, as in {next(iter(THRESHOLDS))}=0.2"
            )
        try:
            limits[name] = float(value)
        except ValueError:
            raise UsageError(f"--threshold {word}: {value!r} is not a number") from None
    return limits


def heading() -> list[str]:
    """The lines above the blocks."""
    return [
        "signal-to-noise against the float model, dB; rounded: its linears rounded afresh",
        "",
        f"{'block':<13}{'export':>7}{'cosine':>8}{'rounded':>9}   {'weakest linear of the export':<30}{'clipped':>9}",
    ]


def block_line(record: dict) -> str:
    """One block, in a line. record: docs/verify.md, "blocks"."""
    name, export = f"{record['tower']} {record['index']}", record["export"]
    line = f"{name:<13}{decibels(record, 'export'):>7.1f}{export['cosine']:>8.4f}{decibels(record, 'rounded'):>9.1f}"
    if not record["linears"]:
        return line + "   float"
    worst = min(record["linears"], key=lambda entry: decibels(entry, "export"))
    clipped = max(entry["clipped_share"] for entry in record["linears"])
    short = worst["linear"].removeprefix(record["block"] + ".")
    return f"{line}   {short:<20}{decibels(worst, 'export'):>10.1f}{clipped:>8.2%}"


def ending(report: dict) -> list[str]:
    """What follows the blocks: logits, answers, the verdict."""
    lines, limits, logits, answers = [""], report["thresholds"], report["logits"], report["free_running"]
    if logits:
        lines.append(f"{logits['positions']} positions after the images{'export':>13}{'rounded':>10}{'allowed':>12}")
        kl = [_number(logits[model]["kl"]) for model in ("export", "rounded")]
        allowed = f"<= {limits['kl']:g}"
        lines.append(f"{'KL divergence, nats':<31}{kl[0]}{kl[1]}{allowed:>12}")
        lines.append(f"{'same token first':<31}{logits['export']['top1']:>10.1%}{logits['rounded']['top1']:>10.1%}")
        if logits["decided"]:
            where = f"   at the {logits['decided']} decided ones"
            shares = [f"{logits[model]['top1_decided']:>10.1%}" for model in ("export", "rounded")]
            allowed = f">= {100 * limits['top1']:g}%" if logits["decided"] >= ENOUGH else "too few"
            lines.append(f"{where:<31}{shares[0]}{shares[1]}{allowed:>12}")
    if answers and "answers" in answers:
        lines.append(
            f"{'answers, until they differ':<31}{answers['agreement']:>10.1%}   of"
            f" {sum(row['tokens'] for row in answers['answers'])} tokens, each model on its own"
        )
    elif answers:
        lines += _wrapped(f"answers were not compared: {answers['skipped']}", "")
    for notice in report["notices"]:
        lines += _wrapped(f"note: {notice}", "")
    return lines + [""] + _verdict(report)


def _verdict(report: dict) -> list[str]:
    verdict = report["verdict"]
    if report["passed"]:
        return [f"passed in {report['seconds']:.0f} s: no tensor is damaged, all within the thresholds"]
    lines = [f"FAILED in {report['seconds']:.0f} s: {CULPRITS[verdict['cause']]}"]
    for reason in verdict["reasons"]:
        lines += _wrapped(reason, "  ")
    if verdict["first_bad_block"]:
        lines += _wrapped(
            f"falls off first at {verdict['first_bad_block']}"
            + (f", linear {verdict['first_bad_linear']}" if verdict["first_bad_linear"] else ""),
            "  ",
        )
    return lines + _wrapped(verdict["advice"], "")


def _number(value: float | None) -> str:
    return f"{'NaN':>10}" if value is None else f"{value:>10.4f}"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
