"""python -m quant sizes: resized size, patches, visual tokens and the sequence length to deploy with, for images and
videos of a given size.
"""

import argparse
import re

from ..base.errors import UsageError
from .cli import TAKE_VIDEOS, WITH_LIMITS, boolean


def image_size(words: str) -> tuple[int, int]:
    """ "720x1280" -> (720, 1280): height, width in pixels. Raises ArgumentTypeError for other words."""
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", words)
    if not match:
        raise argparse.ArgumentTypeError(f"{words!r} is not HEIGHTxWIDTH in pixels, such as 720x1280")
    return int(match[1]), int(match[2])


def video_size(words: str) -> tuple[int, int, int]:
    """ "16x480x640" -> (16, 480, 640): frames, height, width. Raises ArgumentTypeError for other words."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,5})x([1-9]\d{0,5})", words)
    if not match:
        raise argparse.ArgumentTypeError(f"{words!r} is not FRAMESxHEIGHTxWIDTH, such as 16x480x640")
    return int(match[1]), int(match[2]), int(match[3])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add = parser.add_argument
    add("model_path", metavar="DIR", help="the checkpoint, or what was exported from it; no weights are read")
    add("--image", type=image_size, nargs="+", default=[], metavar="HxW", help="height x width, such as 720x1280")
    add(
        "--video",
        type=video_size,
        nargs="+",
        default=[],
        metavar="NxHxW",
        help=f"frames that are taken x height x width, such as 16x480x640 ({TAKE_VIDEOS})",
    )
    add("--min_pixels", type=int, metavar="N", help=f"smallest area ({WITH_LIMITS}; default: the checkpoint's)")
    add("--max_pixels", type=int, metavar="N", help=f"largest area ({WITH_LIMITS}; default: the checkpoint's)")
    add("--prompt", metavar="TEXT", help="what is asked of the image; its tokens count (default: the family's)")
    add("--max_new_tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)")
    add(
        "--trust_remote_code",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="run the checkpoint's code (default: False)",
    )


def run(args: argparse.Namespace) -> int:
    """0. Raises UsageError, QuantError as sizes.Measure does."""
    from pathlib import Path

    from ..families import family_of
    from ..files.config_json import read_json
    from ..inputs.sizes import Measure

    if not args.image and not args.video:
        raise UsageError("nothing to measure: --image HxW or --video NxHxW is needed")
    family = family_of(read_json(Path(args.model_path) / "config.json"), args.model_path)
    measure = Measure(
        args.model_path,
        args.prompt or family.prompt,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        trust_remote_code=args.trust_remote_code,
    )
    sizes = [(f"{height} x {width}", measure(height, width)) for height, width in args.image]
    for frames, height, width in args.video:
        sizes.append((f"{frames} x {height} x {width}", measure.video(frames, height, width)))
    print(f"model     {family.name}")
    if measure.limits:
        print(f"limits    min_pixels {measure.limits[0]}, max_pixels {measure.limits[1]}")
    print(f"text      {measure.text} tokens of chat template and prompt")
    print(f"sequence  input + {args.max_new_tokens} new tokens")
    print(
        f"\n{'height x width':<16}{'resized':<14}{'patches':>8}{'visual':>8}{'input':>8}{'sequence':>10}  pixel_values"
    )
    for name, size in sizes:
        row = name.ljust(16) + f"{size.resized[0]} x {size.resized[1]}".ljust(14)
        print(
            row + f"{size.patches:>8}{size.visual:>8}{size.input:>8}{size.input + args.max_new_tokens:>10} "
            f" {list(size.pixel_values)}"
        )
    longest = max(size.input for _, size in sizes)
    print(
        f"\nmaxInputTokenLen and maxPrefillTokens at least {longest}; maxSeqLen (max_model_len) at least"
        f" {longest + args.max_new_tokens}"
    )
    return 0
