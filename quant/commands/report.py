"""python -m quant report: one HTML file on an export, from the records beside it and what verify and evaluate wrote."""

import argparse
import textwrap

from ..base.errors import QuantError
from .cli import IMAGES_DEFAULT

WIDTH = 80  # columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("directory", metavar="OUT", help="the exported directory; it stays as it is")
    parser.add_argument("--verify", metavar="FILE", help="what `verify OUT --json FILE` wrote")
    parser.add_argument("--evaluation", metavar="FILE", help="what `evaluate --quantized OUT --json FILE` wrote")
    parser.add_argument(
        "--analysis", metavar="FILE", help="analysis.json that `analyze SRC --save_directory DIR` wrote into DIR"
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        default=[],
        metavar="FILE",
        help="evaluations of other exports of the same model on the same questions, to show beside this one's",
    )
    parser.add_argument(
        "--images",
        metavar="PATH",
        help=f"the calibration images, to show them ({IMAGES_DEFAULT})",
    )
    parser.add_argument(
        "--output", default="report.html", metavar="FILE", help="the report (default: report.html, here)"
    )


def run(args: argparse.Namespace) -> int:
    """0. Raises UsageError, QuantError as report.gather does, and when the page cannot be written."""
    from pathlib import Path

    from ..base.console import size
    from ..onnx.export import is_export
    from ..report import decide, gather, onnx_page, page

    line = None
    if is_export(args.directory):
        text = onnx_page.page(args.directory, args.verify, args.evaluation)
    else:
        facts = gather(args.directory, args.verify, args.evaluation, args.images, args.peers, args.analysis)
        text, line = page(facts), decide(facts).line
    output = Path(args.output)
    partial = output.with_name(f"{output.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise QuantError(f"--output {output}: {error.strerror}") from None
    print(f"{output}, {size(len(text.encode()))}")
    for part in textwrap.wrap(line or "", WIDTH, break_long_words=False, break_on_hyphens=False):
        print(part)
    return 0
