"""From a command line to an exit code: 0 done, 1 a job or check failed, 2 the request was wrong, 130 interrupted.

Expected errors are one line on stderr. A traceback means a bug of ours.
"""

import argparse
import importlib
import os
import sys

from ..base.config import CALIB_IMAGES
from ..base.errors import QuantError
from ..base.process import at_work
from ..families import FAMILIES

COMMANDS = {
    "quantize": "float checkpoint + images -> W8A8 directory",
    "verify": "an export against its float model: damage, errors, whose fault",
    "evaluate": "scores of the float and the int8 model, or of two servers",
    "export": "a finished export in another format, without calibration",
    "dump": "intermediate features of a model on fixed inputs",
    "compare": "two dumps, down to the first module that differs",
    "check": "an export against the rules of MindIE and vLLM-Ascend",
    "handoff": "the server's configuration and a page of commands for an export",
    "sizes": "tokens and sequence length for images of a given size",
    "embed-tokens": "the embedding table as a file, for split deployments",
    "report": "one HTML page on an export, to be read offline",
    "onnx": "a float ONNX model of the PP-OCR line -> int8, within a point of float",
    "fetch-coco": "download 30 CC BY photographs of COCO for calibration",
}

IMAGES_DEFAULT = f"default: {CALIB_IMAGES.name}/ of this repository"
"""For the help of flags that name calibration images."""
IMAGES = 'folder of images; or .jsonl, .json, .tsv of {"image" or "images", "prompt", "answer"}'
"""For the help of flags that name images."""
WITH_LIMITS = ", ".join(family.name for family in FAMILIES.values() if family.processing.limits)
"""For the help of --min_pixels and --max_pixels: the families that have them."""


def boolean(word: str) -> bool:
    """True or False, in words, as the vendor's scripts take them. Raises ArgumentTypeError for any other word."""
    if word.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither True nor False")
    return word.lower() in ("true", "1", "yes")


class Guard:
    """Use as a context manager around a command's work: what it raises becomes one line on stderr, and the exit code
    `code`, which is 0 where nothing was raised and nothing else was assigned.
    """

    def __init__(self) -> None:
        self.code = 0

    def __enter__(self) -> "Guard":
        at_work()
        # Nothing is fetched behind the user's back: what is not on disk is an error.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        return self

    def __exit__(self, kind, err: BaseException | None, traceback) -> bool:
        if isinstance(err, QuantError):
            print(f"error: {err}", file=sys.stderr)
            self.code = err.exit_code
        elif isinstance(err, KeyboardInterrupt):
            print(str(err) or "interrupted; nothing was left in the output directory", file=sys.stderr)
            self.code = 130
        elif isinstance(err, BrokenPipeError):  # the reader of our output went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.code = 1
        else:
            return False
        return True


def main(argv: list[str] | None = None) -> int:
    """python -m quant COMMAND ..."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m quant",
        description="W8A8 quantization of vision-language models for Ascend NPUs.",
        epilog="\n".join(
            [
                "commands:",
                *(f"  {name:<14} {what}" for name, what in COMMANDS.items()),
                "",
                "COMMAND --help tells more.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    if not argv or argv[0] in ("-h", "--help"):
        parser.print_help()
        return 0 if argv else 2
    name = parser.parse_args(argv[:1]).command
    module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
    command_parser = argparse.ArgumentParser(prog=f"python -m quant {name}", description=COMMANDS[name])
    module.add_arguments(command_parser)
    args = command_parser.parse_args(argv[1:])
    with Guard() as guard:
        guard.code = module.run(args) or 0
    return guard.code
