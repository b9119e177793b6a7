"""python -m quant compare: two dumps of the same inputs, down to the first module that differs."""

import argparse
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import QuantError

if TYPE_CHECKING:
    from ..compare.compare import Comparison

WIDTH = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("a", metavar="A", help="a dump: what is right")
    parser.add_argument("b", metavar="B", help="a dump of the same inputs: what is looked into")
    parser.add_argument(
        "--map", metavar="FILE", help="JSON object {name in A: name in B}; one * in both stands for the same text"
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="X", help="relative error up to which features agree (default: 0.01)"
    )
    parser.add_argument(
        "--all", action="store_true", help="print all features, not only those around the first that differs"
    )
    parser.add_argument("--json", metavar="FILE", help="write all that was measured to FILE")


def run(args: argparse.Namespace) -> int:
    """0 when all features agree, 1 when one differs. Raises UsageError for flags that cannot be used, QuantError for a
    dump that cannot be read or a report that cannot be written.
    """
    from ..compare.compare import TOLERANCE, compare, read_map
    from ..compare.features import Dump

    tolerance = TOLERANCE if args.tolerance is None else args.tolerance
    result = compare(Dump(args.a), Dump(args.b), read_map(args.map) if args.map else None, tolerance)
    for line in lines(result, tolerance, args.all):
        print(line)
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(result.as_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as err:
            raise QuantError(f"--json {args.json}: {err.strerror}") from None
    return 0 if result.first is None else 1


def lines(result: "Comparison", tolerance: float, everything: bool) -> list[str]:
    """The result for people, at most 80 columns.

    everything: print every feature, not only those around the first that differs.
    """
    number = len(result.rows) if result.first is None else result.rows.index(result.first)
    shown = (
        range(len(result.rows))
        if everything or len(result.rows) <= 12
        else range(max(0, number - 4), min(len(result.rows), number + 4))
    )
    text = [f"{'feature':<44}{'rel. error':>11}{'largest':>11}{'cosine':>9}"]
    if shown and shown[0] > 0:
        text.append(f"... {shown[0]} before, which agree")
    for index in shown:
        row = result.rows[index]
        mark = "  <-" if row is result.first else ""
        name = row.feature if len(row.feature) <= 43 else "..." + row.feature[-40:]
        figures = f"{row.relative:>11.2e}{row.largest:>11.2e}{row.cosine:>9.5f}"
        if row.shapes:
            figures = f"  shapes {list(row.shapes[0])}, {list(row.shapes[1])}"
        text.append(f"{name:<44}{figures}{mark}")
    if shown and shown[-1] + 1 < len(result.rows):
        text.append(f"... {len(result.rows) - shown[-1] - 1} after")
    text.append("")
    for side, names in zip("AB", result.only):
        if names:
            text += _wrapped(f"only in {side}, not compared: {len(names)}, {names[0]} first")
    for warning in result.warnings:
        text += _wrapped(f"warning: {warning}")
    if result.first is None:
        return text + [f"all {len(result.rows)} features agree within {tolerance:g}"]
    text += _wrapped(
        f"differs first: {result.first.feature}"
        + (
            f"; the last that agrees is {result.before.feature}"
            if result.before
            else "; nothing before it was compared"
        )
    )
    for hint in result.hints:
        text += _wrapped(hint, "  ")
    return text


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
