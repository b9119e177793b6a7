"""python -m quant fetch-coco: 30 photographs of COCO that may be passed on, for --calib_images."""

import argparse
from pathlib import Path

from ..base.config import COCO_LIST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(COCO_LIST.stem),
        metavar="DIR",
        help="folder to fill (default: %(default)s)",
    )
    parser.add_argument(
        "--list",
        type=Path,
        default=COCO_LIST,
        metavar="FILE",
        help=f"what to fetch (default: {COCO_LIST.parent.name}/{COCO_LIST.name}, shipped here)",
    )
    parser.add_argument("--base_url", metavar="URL", help="a mirror that has the files under URL/ (default: as listed)")


def run(args: argparse.Namespace) -> None:
    """Fill the folder. Raises UsageError and QuantError as inputs.fetch_coco does."""
    from ..inputs.fetch_coco import fetch_coco

    fetch_coco(args.out, args.list, args.base_url, report=print)
