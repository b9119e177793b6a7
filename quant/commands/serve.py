"""python -m quant serve: an OpenAI-compatible endpoint over the int8 runtime, for the harness that people have."""

import argparse
import os

from ..base.errors import UsageError
from .cli import WITH_LIMITS, boolean

KEY_VARIABLE = "QUANT_API_KEY"
EXTRA = ("fastapi", "uvicorn")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add = parser.add_argument
    add("directory", metavar="OUT", nargs="?", help="an exported W8A8 directory, computed as the NPU does")
    add("--float", metavar="SRC", help="a float checkpoint, in the place of OUT: one model is in memory")
    add("--name", metavar="NAME", help="that requests call the model by (default: the directory's)")
    where = parser.add_argument_group("where")
    where.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)"
    )
    where.add_argument("--port", type=int, default=8000, metavar="N", help="default: 8000; 0: any that is free")
    where.add_argument(
        "--api_key", metavar="KEY", help=f"that requests must bring (default: ${KEY_VARIABLE}, else none is asked for)"
    )
    where.add_argument("--image_root", metavar="DIR", help="allow file:// URLs of images below DIR (default: none)")
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--queue", type=int, default=32, metavar="N", help="requests that may wait; beyond it is 429 (default: 32)"
    )
    limits.add_argument(
        "--max_request", type=float, default=32, metavar="MIB", help="largest request, images in it (default: 32)"
    )
    limits.add_argument(
        "--time_limit", type=float, default=600, metavar="S", help="seconds from arrival to answer (default: 600)"
    )
    limits.add_argument(
        "--max_model_len", type=int, metavar="N", help="most tokens of prompt and answer (default: the model's own)"
    )
    limits.add_argument(
        "--max_pixels",
        type=int,
        metavar="N",
        help=f"largest area an image is resized to ({WITH_LIMITS}; default: the checkpoint's)",
    )
    job = parser.add_argument_group("job")
    job.add_argument("--device_type", choices=("npu", "cuda", "cpu"), help="default: the first that is there")
    job.add_argument(
        "--trust_remote_code",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="run code that the checkpoint brings (default: False)",
    )
    job.add_argument("--log_file", metavar="FILE", help="append what is printed to FILE, with the time")
    job.add_argument("--quiet", action="store_true", help="print errors only")


def run(args: argparse.Namespace) -> int:
    """0 when it was stopped. Raises UsageError for flags that cannot be used, an address that is taken, packages that
    are missing; QuantError for a model that cannot be run.
    """
    _check(args)
    import socket
    from pathlib import Path

    from ..base.console import Reporter

    reporter = Reporter(args.quiet, args.log_file)
    image_root = Path(args.image_root).resolve() if args.image_root else None
    try:
        listening = socket.create_server((args.host, args.port), family=_family(args.host), backlog=128)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(f"--host {args.host} --port {args.port}: {why}; choose another") from None
    with listening:
        from ..files.checkpoint import Checkpoint
        from ..files.config_json import read_json
        from ..model.device import pick_device
        from ..serve.app import Service, make_app
        from ..serve.engine import Engine
        from ..serve.request import Defaults
        from ..verify import runtime

        load, directory = (runtime.load_float, args.float) if args.float else (runtime.load, args.directory)
        device = pick_device(args.device_type)
        directory = Checkpoint(directory).dir if args.float else Path(directory)
        reporter.line(f"loading    {directory}, {'float' if args.float else 'int8'}, on {device}")
        model, encoder = load(directory, device, max_pixels=args.max_pixels, trust_remote_code=args.trust_remote_code)
        settings = encoder.directory / "generation_config.json"
        service = Service(
            args.name or encoder.directory.resolve().name,
            Engine(model, encoder, longest=_longest(args, encoder.directory), line=args.queue),
            Defaults.of(read_json(settings) if settings.is_file() else {}),
            image_root,
            int(args.max_request * 2**20),
            args.time_limit,
            args.api_key or os.environ.get(KEY_VARIABLE) or None,
            reporter.line,
        )
        _listen(listening, make_app(service), service, reporter, args.host)
    return 0


def _check(args: argparse.Namespace) -> None:
    import importlib.util

    if bool(args.directory) == bool(args.float):
        both = "one model is in memory; serve the other on another --port" if args.float else "OUT, or --float SRC"
        raise UsageError(f"{2 * bool(args.float)} models are given; {both}")
    for flag, least in (("port", 0), ("queue", 0), ("max_model_len", 1), ("max_pixels", 1)):
        if getattr(args, flag) is not None and getattr(args, flag) < least:
            raise UsageError(f"--{flag} {getattr(args, flag)}: must be at least {least}")
    for flag in ("max_request", "time_limit"):
        if not 0 < getattr(args, flag) < float("inf"):
            raise UsageError(f"--{flag} {getattr(args, flag):g}: must be above 0")
    if args.image_root and not os.path.isdir(args.image_root):
        raise UsageError(f"--image_root {args.image_root}: no such folder")
    if missing := [name for name in EXTRA if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"serve needs {' and '.join(missing)}, not installed: pip install {' '.join(EXTRA)}, or this package with"
            " [serve]"
        )


def _family(host: str):
    import socket

    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _longest(args: argparse.Namespace, directory) -> int:
    """Tokens of prompt and answer: --max_model_len, which cannot exceed what the model has positions for."""
    from ..families.numbers import text
    from ..files.config_json import read_json

    own = text(read_json(directory / "config.json"), "max_position_embeddings", 4096)
    if args.max_model_len and args.max_model_len > own:
        raise UsageError(f"--max_model_len {args.max_model_len}: {directory / 'config.json'} has {own} positions")
    return args.max_model_len or own


def _listen(listening, app, service, reporter, host: str) -> None:
    """Serve until SIGINT or SIGTERM."""
    import uvicorn

    port = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    if host not in ("127.0.0.1", "::1", "localhost") and service.key is None:
        reporter.line(f"warning    anybody who reaches {shown} may ask: --api_key KEY asks for a key")
    reporter.line(f"serving    {service.name} at http://{shown}:{port}/v1, Ctrl-C ends it")
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, lifespan="off")
    server = uvicorn.Server(config)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn has shut down, and passes the signal on
        pass
    finally:
        service.engine.close()
    reporter.line("stopped")
