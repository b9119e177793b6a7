"""python -m quant export: a finished export in another format, without calibrating again."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

from ..base.errors import QuantError, UsageError

TARGETS = {("ascendV1", "static"): "all", ("mindie", "static"): "mindie"}
"""Format and activations -> the servers that it is for; vLLM-Ascend for the rest, dynamic linears among them, and
compressed-tensors has rules of its own.
"""
STATIC_SYMMETRIC = (
    "vLLM-Ascend leaves the input offset of this format's static activations uninitialised: wrong output there; use"
    " --act dynamic for it. Other vLLM takes it"
)
EPILOG = (
    "compressed-tensors is for vLLM and transformers; dynamic and mix are for vLLM-Ascend."
    " docs/mindie_format.md describes them all."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.epilog = EPILOG
    parser.add_argument("export", metavar="EXPORT", help="a W8A8 export, of either Ascend layout")
    parser.add_argument("directory", metavar="OUT", help="where the result goes: empty or not there yet")
    add_format(parser)


def add_format(parser) -> None:
    """The flags of the commands that write an export: format, activations, and whose rules it is checked against."""
    parser.add_argument(
        "--save_type",
        choices=("ascendV1", "mindie", "compressed-tensors"),
        metavar="FORMAT",
        help="ascendV1, mindie or compressed-tensors (default: ascendV1)",
    )
    parser.add_argument(
        "--act",
        choices=("static", "dynamic", "mix"),
        help=(
            "activations: static per tensor, dynamic per token, mix of both by phase (default: static, or as --scheme"
            " and --dynamic_names say; compressed-tensors: dynamic)"
        ),
    )
    parser.add_argument(
        "--world_size",
        type=int,
        default=1,
        metavar="N",
        help="NPUs that are to share the model (default: 1): what is not served rightly on so many is refused",
    )
    parser.add_argument(
        "--target",
        choices=("mindie", "vllm-ascend", "all"),
        metavar="SERVER",
        help=(
            "mindie, vllm-ascend or all: the server whose rules the result is checked against (default: those that the"
            " format is for)"
        ),
    )


def run(args: argparse.Namespace) -> int:
    """0. Raises UsageError, QuantError as formats.export and verdict do."""
    from ..export import formats

    save_type, act = chosen(args, ("W8A8",))
    target = formats.export(args.export, args.directory, save_type, act)
    print(f"result   {target}")
    verdict(target, args.target, save_type, act, world_size=args.world_size)
    return 0


def chosen(args: argparse.Namespace, words: Collection[str]) -> tuple[str, str]:
    """Format and activations by the flags, for int8 linears of the types `words`. Raises UsageError for what does not
    go together.
    """
    from ..export.formats import resolve

    if args.world_size < 1:
        raise UsageError(f"--world_size {args.world_size}: at least 1")
    save_type = args.save_type or "ascendV1"
    if getattr(args, "mindie_format", False):
        if args.save_type not in (None, "mindie"):
            raise UsageError(f"--mindie_format with --save_type {args.save_type}: they are two formats, leave one out")
        save_type = "mindie"
    if save_type == "compressed-tensors" and args.target:
        raise UsageError(f"--target {args.target}: its rules are those of the Ascend format, not of compressed-tensors")
    return save_type, resolve(save_type, args.act, words)


def servers_of(target: str | None, save_type: str, act: str) -> list[str]:
    """The servers that a format is for, or those that --target names."""
    target = target or TARGETS.get((save_type, act), "vllm-ascend")
    return ["mindie", "vllm-ascend"] if target == "all" else [target]


def verdict(
    directory: Path,
    target: str | None,
    save_type: str,
    act: str,
    say: Callable[[str], None] = print,
    world_size: int = 1,
) -> None:
    """Check what was written, and say what is wrong, and for which numbers of NPUs it is right. Raises QuantError when
    a server would not serve it.
    """
    from ..servers.rules import SERVERS, check_directory, open_directory, serving
    from ..servers.rules.deployment import static_but_for_experts
    from .check import numbers, render

    if save_type == "compressed-tensors":
        if act == "static":
            say(f"warning  {STATIC_SYMMETRIC}")
        return
    opened, servers = open_directory(directory), servers_of(target, save_type, act)
    if not target and save_type == "ascendV1" and static_but_for_experts(opened):
        servers = list(SERVERS)
    if not target:  # nobody asked for a server that does not have the model
        servers = [server for server in servers if server in serving(opened)] or serving(opened)
    findings = check_directory(opened, servers, world_size=world_size)
    for line in render(findings):
        say(line)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        broken = {
            name: [finding.rule for finding in errors if server in finding.effects] for server, name in SERVERS.items()
        }
        blamed: dict[str, list[str]] = {}
        for name, found in broken.items():
            if found:
                blamed.setdefault(", ".join(dict.fromkeys(found)), []).append(name)
        told = "; ".join(f"{' and '.join(names)}: {rules}" for rules, names in blamed.items())
        raise QuantError(
            f"{directory}: is written, but breaks rules of {told}; `python -m quant check` tells more,"
            " --target chooses the server"
        )
    say(f"check    nothing wrong for {' and '.join(SERVERS[server] for server in servers)}")
    for line in numbers(opened, servers):
        say(f"NPUs     {line}")
