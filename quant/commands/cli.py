"""From a command line to an exit code: 0 done, 1 a job or check failed, 2 the request was wrong, 130 interrupted.

Expected errors are one line on stderr. A traceback means a bug of ours.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path
from traceback import format_exception

from ..base import transformers_api
from ..base.config import CALIB_IMAGES, MAX_FRAMES
from ..base.errors import QuantError
from ..base.logs import append
from ..base.process import at_work
from ..base.version import VERSION
from ..families import FAMILIES

COMMANDS = {
    "quantize": "float checkpoint + images -> W8A8 directory",
    "analyze": "what int8 costs, group by group; what to move for a bound",
    "verify": "an export against its float model: damage, errors, whose fault",
    "evaluate": "scores of the float and the int8 model, or of two servers",
    "serve": "an OpenAI-compatible endpoint over an export or a float model",
    "export": "a finished export in another format, without calibration",
    "dump": "intermediate features of a model on fixed inputs",
    "compare": "two dumps, down to the first module that differs",
    "check": "an export against the rules of MindIE and vLLM-Ascend",
    "handoff": "the server's configuration and a page of commands for an export",
    "sizes": "tokens and sequence length for images of a given size",
    "embed-tokens": "the embedding table as a file, for split deployments",
    "report": "one HTML page on an export, to be read offline",
    "onnx": "a float ONNX model of the PP-OCR line -> int8",
    "fetch-coco": "download 30 CC BY photographs of COCO for calibration",
}

COMPUTE = ("quantize", "analyze", "verify", "serve", "dump", "sizes")
"""The commands that always need torch and transformers; evaluate does without, against servers."""
CONSOLE = "ascend-vlm-quant"
"""The console command that pip installs: the distribution's own name, which no other can have."""
IMAGES_DEFAULT = f"default: the photographs shipped here, {CALIB_IMAGES.name}/"
"""For the help of flags that name calibration images."""
IMAGES = 'folder of images; or .jsonl, .json, .tsv of {"image", "images" or "videos", "prompt", "answer"}'
"""For the help of flags that name images."""
TAKE_VIDEOS = ", ".join(family.name for family in FAMILIES.values() if family.processing.video)
"""For the help of --fps and --max_frames: the families that take videos."""
WITH_LIMITS = ", ".join(family.name for family in FAMILIES.values() if family.processing.limits)
"""For the help of --min_pixels and --max_pixels: the families that have them."""


def add_sampling(group, default: int | None = MAX_FRAMES) -> None:
    """--fps and --max_frames. default: of the second; None where the command has none of its own."""
    group.add_argument(
        "--fps",
        type=float,
        metavar="N",
        help=f"frames taken of a second of video ({TAKE_VIDEOS}; default: the checkpoint's)",
    )
    group.add_argument(
        "--max_frames",
        type=int,
        default=default,
        metavar="N",
        help=f"frames of a video at most (default: {MAX_FRAMES})",
    )


def boolean(word: str) -> bool:
    """True or False, in words, as the vendor's scripts take them. Raises ArgumentTypeError for any other word."""
    if word.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither True nor False")
    return word.lower() in ("true", "1", "yes")


def share(word: str) -> float:
    """ "0.5%" or "0.005" -> 0.005. Raises ArgumentTypeError for what is no share above 0."""
    try:
        value = float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is no share such as 0.5% or 0.005")
    return value


def expanded(args: argparse.Namespace) -> argparse.Namespace:
    """The same with ~ in paths replaced by the home directory: a shell leaves it in --save_directory=~/out."""
    for name, value in vars(args).items():
        if isinstance(value, str | Path) and name != "prompt" and str(value).startswith("~"):
            setattr(args, name, type(value)(os.path.expanduser(value)))
    return args


class Guard:
    """Use as a context manager around a command's work: what it raises becomes one line on stderr, and the exit code
    `code`, which is 0 where nothing was raised and nothing else was assigned. log_file: gets the line, too, or the
    traceback of what is a bug of ours.
    """

    def __init__(self, log_file: str | None = None) -> None:
        self.code, self.log_file = 0, log_file

    def __enter__(self) -> "Guard":
        at_work()
        # Nothing is fetched behind the user's back: what is not on disk is an error.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        return self

    def __exit__(self, kind, err: BaseException | None, traceback) -> bool:
        if isinstance(err, QuantError):
            self._say(f"error: {err}")
            self.code = err.exit_code
        elif isinstance(err, KeyboardInterrupt):
            self._say(str(err) or "interrupted; nothing was left in the output directory")
            self.code = 130
        elif isinstance(err, BrokenPipeError):  # the reader of our output went away, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.code = 1
        else:
            if err is not None:
                append(self.log_file, "".join(format_exception(err)).rstrip())
            return False
        return True

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr)
        append(self.log_file, line)


def console() -> None:
    """The console command: main(), and the process ends with its exit code."""
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    """python -m quant COMMAND ..."""
    argv = sys.argv[1:] if argv is None else argv
    program = CONSOLE if os.path.basename(sys.argv[0]) == CONSOLE else "python -m quant"
    parser = argparse.ArgumentParser(
        prog=program,
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
    parser.add_argument("--version", action="version", version=f"quant {VERSION}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    if not argv or argv[0] in ("-h", "--help"):
        parser.print_help()
        return 0 if argv else 2
    name = parser.parse_args(argv[:1]).command
    module = importlib.import_module(f".{name.replace('-', '_')}", __package__)
    command_parser = argparse.ArgumentParser(prog=f"{program} {name}", description=COMMANDS[name])
    module.add_arguments(command_parser)
    args = expanded(command_parser.parse_args(argv[1:]))
    with Guard(getattr(args, "log_file", None)) as guard:
        if name in COMPUTE:
            transformers_api.check_version(models=False)
        guard.code = module.run(args) or 0
    return guard.code
