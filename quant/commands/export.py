"""python -m quant export: a finished export in another format, without calibrating again."""

import argparse

SERVERS = {
    ("ascendV1", "static"): ("mindie", "vllm-ascend"),
    ("mindie", "static"): ("mindie",),
}  # that a format is checked for
EPILOG = "compressed-tensors is for vLLM and transformers; dynamic and mix are for vLLM-Ascend. docs/mindie_format.md describes them all."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("export", metavar="EXPORT", help="a static W8A8 export, of either Ascend layout")
    parser.add_argument("directory", metavar="OUT", help="where the result goes: empty or not there yet")
    add_format(parser)


def add_format(parser) -> None:
    """The flags that choose a format, for the commands that write one."""
    parser.add_argument(
        "--save_type",
        choices=("ascendV1", "mindie", "compressed-tensors"),
        default="ascendV1",
        help="format (default: ascendV1)",
    )
    parser.add_argument(
        "--act",
        choices=("static", "dynamic", "mix"),
        help="activations: static per tensor, dynamic per token, mix of both by phase (default: static; compressed-tensors: dynamic)",
    )


def run(args: argparse.Namespace) -> int:
    """0, or 1 when the result does not keep its servers' rules."""
    from .. import formats

    act = formats.resolve(args.save_type, args.act)
    target = formats.export(args.export, args.directory, args.save_type, act)
    print(f"result   {target}")
    return verdict(target, args.save_type, act)


def verdict(directory, save_type: str, act: str, say=print) -> int:
    """Check an export for the servers that its format is for; 1 when there are errors."""
    from ..contracts import SERVERS as NAMES
    from ..contracts import check
    from .check import render

    if save_type == "compressed-tensors":
        return 0
    servers = SERVERS.get((save_type, act), ("vllm-ascend",))
    findings = check(directory, servers)
    for line in render(findings):
        say(line)
    errors = sum(finding.level == "error" for finding in findings)
    names = " and ".join(NAMES[server] for server in servers)
    say(f"check    {f'{errors} errors' if errors else 'nothing wrong'} for {names}")
    return 1 if errors else 0
