"""python -m quant check: an export against the rules of the servers that are to load it."""

import argparse
from pathlib import Path

from ..base.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    from ..servers.rules.finding import SERVERS, VERSIONS

    parser.epilog = (
        f"The rules are those of the loaders of {' and '.join(VERSIONS.values())}. An error keeps the server from"
        " loading the export or makes it wrong, a warning can be gone round, and no loader asks for a matter of taste."
    )

    parser.add_argument("export", metavar="EXPORT", help="an exported directory, of this project or of msmodelslim")
    parser.add_argument(
        "--target",
        choices=(*SERVERS, "all"),
        help="the server that is to load it (default: that of the profile it was made with; without one, all)",
    )
    parser.add_argument(
        "--hardware", choices=("a2", "a3", "310p"), help="Atlas 800 A2 or A3, Atlas 300I Duo (default: A2 or A3)"
    )
    parser.add_argument("--world_size", type=int, default=1, metavar="N", help="NPUs that share the model (default: 1)")
    parser.add_argument(
        "--model_path",
        metavar="DIR",
        help="the float checkpoint: compare names, side files and what config.json says of the model with it",
    )
    parser.add_argument(
        "--fix",
        metavar="DIR",
        help="write a repaired copy there, as far as that goes without the float weights, and check it",
    )
    parser.add_argument(
        "--processor",
        action="store_true",
        help="also load the processor, with the installed transformers (some seconds)",
    )


def run(args: argparse.Namespace) -> int:
    """0 when there is no error, whatever else was found; 1 when there is. Raises UsageError for flags that do not do,
    and QuantError for a directory that cannot be read.
    """
    from ..export.recipe import profile_of
    from ..onnx.export import is_export
    from ..servers.rules import SERVERS, check_directory, open_directory

    if is_export(args.export):
        from . import onnx

        return onnx.check(args)
    if args.world_size < 1:
        raise UsageError(f"--world_size {args.world_size}: at least 1")
    if args.model_path and not Path(args.model_path).is_dir():
        raise UsageError(f"--model_path {args.model_path}: no such directory")
    directory = Path(args.export)
    target = args.target or profile_of(directory)
    servers = [target] if target in SERVERS else list(SERVERS)
    if args.fix:
        from ..servers.rules.repair import repair

        for line in repair(directory, Path(args.fix), Path(args.model_path) if args.model_path else None):
            print(line)
        directory = Path(args.fix)
    opened = open_directory(directory)
    source = Path(args.model_path) if args.model_path else None
    findings = check_directory(opened, servers, args.hardware, args.world_size, source)
    if args.processor:
        load_processor(directory)
    for line in render(findings):
        print(line)
    print(f"{directory}: {counted(findings, servers)}")
    loaded = [server for server in servers if not any(_keeps_off(finding, server) for finding in findings)]
    if loaded:
        for line in numbers(opened, loaded, args.hardware):
            print(f"NPUs     {line}")
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _keeps_off(finding, server: str) -> bool:
    """Whether it is an error on any number of NPUs."""
    return (
        finding.level == "error"
        and server in finding.effects
        and finding.rule not in ("world-size", "vision-tensor-parallel")
    )


def numbers(opened, servers: list[str], hardware: str | None = None) -> list[str]:
    """A line for each server: the numbers of NPUs that it computes the export rightly on, and what to mind on others.
    opened: a rules.Directory.
    """
    from ..servers.rules import SERVERS
    from ..servers.rules.deployment import TRIED, served_on, vision_tensor_parallel
    from ..servers.rules.directory import Target

    lines = []
    for server in servers:
        sizes = [str(size) for size in served_on(opened, server, hardware)]
        words = f"{', '.join(sizes[:-1])} or {sizes[-1]}" if sizes[1:] else f"{sizes[0]} alone"
        wrong = server == "mindie" and any(vision_tensor_parallel(opened, Target(server, hardware, TRIED[1])))
        lines.append(f"{SERVERS[server]}: right on {words}" + "; on more silently wrong (--vision float)" * wrong)
    return lines


def counted(findings: list, servers: list[str]) -> str:
    """How many findings each server has; servers with equal counts together."""
    from ..servers.rules import SERVERS

    told: dict[str, list[str]] = {}
    for server in servers:
        levels = [finding.level for finding in findings if server in finding.effects]
        errors, warnings, tastes = (levels.count(level) for level in ("error", "warning", "taste"))
        tasteful = f", {tastes} matters of taste" if tastes else ""
        said = f"{errors} errors, {warnings} warnings{tasteful}" if levels else "nothing wrong"
        told.setdefault(said, []).append(SERVERS[server])
    return "; ".join(f"{said} for {' and '.join(names)}" for said, names in told.items())


SHOWN = 3  # findings of one rule that are printed in full


def render(findings: list) -> list[str]:
    """The findings as lines, those of a rule with one way out together."""
    from ..servers.rules import SERVERS

    lines = []
    for key in dict.fromkeys(map(_way_out, findings)):
        alike = [finding for finding in findings if _way_out(finding) == key]
        rule, fix = alike[0].rule, alike[0].fix
        lines.append(f"{alike[0].level}: {rule}")
        lines += [f"  {finding.where} {finding.what}" for finding in alike[:SHOWN]]
        if len(alike) > SHOWN:
            lines.append(f"  and {len(alike) - SHOWN} more")
        lines += [f"  {SERVERS[server]}: {effect}" for server, effect in alike[0].effects.items()]
        lines.append(f"  fix: {fix}")
    return lines


def _way_out(finding) -> tuple:
    return finding.rule, finding.level, finding.fix, tuple(finding.effects)


def load_processor(directory: Path) -> None:
    """Raises QuantError when the processor does not load."""
    from ..inputs.encoder import Encoder

    Encoder(directory)
