"""python -m quant handoff: what the one who deploys an export needs, for one server, or why it cannot work."""

import argparse

from .cli import WITH_LIMITS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add = parser.add_argument
    add("export", metavar="EXPORT", help="an exported directory")
    add("--server", choices=("mindie", "vllm-ascend"), required=True, help="that is to serve it")
    add("--out", required=True, metavar="DIR", help="where config.json (MindIE) and DEPLOY.md go; not inside EXPORT")
    add("--world_size", type=int, default=1, metavar="N", help="NPUs that share the model (default: 1)")
    add("--npu_ids", type=int, nargs="+", metavar="N", help="which (default: 0 to world_size - 1)")
    add("--hardware", choices=("a2", "a3", "310p"), help="Atlas 800 A2 or A3, Atlas 300I Duo (default: A2 or A3)")
    add("--npu_memory", type=float, metavar="GIB", help="memory of one NPU (default: 64; 310p: 48)")
    add("--config", metavar="FILE", help="MindIE's conf/config.json to merge into (default: only the keys that matter)")
    add("--directory", metavar="PATH", help="the export's path on the server (default: EXPORT's)")
    add("--name", metavar="NAME", help="that requests call the model by (default: EXPORT's)")
    add("--port", type=int, metavar="N", help="default: 1025 for MindIE, 8000 for vLLM-Ascend")
    add(
        "--max_pixels",
        type=int,
        metavar="N",
        help=f"largest area an image is resized to ({WITH_LIMITS}; default: the export's)",
    )
    add("--text_tokens", type=int, default=512, metavar="N", help="longest prompt beside the image (default: 512)")
    add("--max_new_tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)")
    add("--concurrency", type=int, default=4, metavar="N", help="requests served at a time (default: 4)")
    add("--model_path", metavar="DIR", help="the float checkpoint, for the evaluation command")


def run(args: argparse.Namespace) -> int:
    """0. Raises UsageError for what cannot be asked, QuantError for what cannot work."""
    from pathlib import Path

    from ..base.errors import UsageError
    from ..export.recipe import identities, source_of
    from ..files.config_json import read_json
    from ..inputs.sizes import Measure
    from ..servers import handoff, service
    from ..servers.deploy_page import PORTS, Place
    from ..servers.rules import open_directory

    for flag in ("world_size", "text_tokens", "max_new_tokens", "concurrency"):
        if getattr(args, flag) < 1:
            raise UsageError(f"--{flag} {getattr(args, flag)}: at least 1")
    if args.config and args.server != "mindie":
        raise UsageError("--config is MindIE's; vLLM-Ascend has none")
    npus = tuple(args.npu_ids or range(args.world_size))
    if len(npus) != args.world_size or len(set(npus)) != len(npus):
        raise UsageError(
            f"--npu_ids {' '.join(map(str, npus))}: {args.world_size} different ones are needed for --world_size"
            f" {args.world_size}"
        )
    out, source = Path(args.out).resolve(), Path(args.export).resolve()
    if out == source or source in out.parents:
        raise UsageError(
            f"--out {args.out}: is inside the export; MindIE's config.json would take the place of the model's"
        )

    made_from = source_of(source)
    if args.model_path and made_from and Path(args.model_path).is_dir():
        there = identities(None, Path(args.model_path))["float"]
        if there != made_from:
            raise UsageError(
                f"--model_path {args.model_path}: is another model (sha256 {there[:16]}) than {source} was made from"
                f" ({made_from[:16]}); scores against it would say nothing"
            )
    given = read_json(Path(args.config)) if args.config else None
    export = open_directory(args.export)
    place = Place(
        server=args.server,
        directory=args.directory or str(source),
        name=args.name or source.name,
        port=args.port or _port(given) or PORTS[args.server],
        npus=npus,
        hardware=args.hardware,
        float_model=args.model_path,
        max_pixels=args.max_pixels,
    )
    warnings = handoff.refuse(export, place, args.world_size)
    measure = Measure(args.export, export.family.prompt, max_pixels=args.max_pixels)
    patches, image_tokens = measure.largest()
    max_input = image_tokens + args.text_tokens
    load = service.Load(args.world_size, image_tokens, patches, max_input, args.max_new_tokens, args.concurrency)
    npu_memory = args.npu_memory or service.NPU_MEMORY[args.hardware]
    demand = service.demand(export, load)
    service.fits(args.server, demand, load, npu_memory)
    files = handoff.files(export, place, load, demand, npu_memory, given, warnings)
    handoff.write(Path(args.out), files)
    print(f"memory   {demand.total / service.GIB:.1f} of {npu_memory:g} GiB on each of {args.world_size} NPUs")
    print(f"result   {args.out}")
    return 0


def _port(given: dict | None) -> int | None:
    """The port in MindIE's own configuration, which stays unless another is asked for."""
    server = (given or {}).get("ServerConfig")
    return server.get("port") if isinstance(server, dict) else None
