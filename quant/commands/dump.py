"""python -m quant dump: intermediate features of a checkpoint or an export on fixed inputs, for python -m quant
compare.
"""

import argparse

from ..base.config import QuantConfig
from ..base.errors import UsageError
from .cli import IMAGES, IMAGES_DEFAULT, WITH_LIMITS, add_sampling, boolean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("directory", metavar="DUMP", help="where the dump goes: empty or not there yet")
    parser.add_argument(
        "--model_path",
        required=True,
        metavar="DIR",
        help="a float checkpoint, or an export, which computes as the NPU does",
    )
    parser.add_argument(
        "--modules",
        nargs="+",
        metavar="PATTERN",
        help=(
            "hub names of modules, or globs: model.layers.3.* (default: every block, and what stands outside the"
            " blocks)"
        ),
    )
    samples = parser.add_argument_group("samples")
    samples.add_argument(
        "--inputs", metavar="DUMP", help="take the inputs of an earlier dump; the others do not count then"
    )
    samples.add_argument(
        "--images",
        metavar="PATH",
        help=f"{IMAGES} ({IMAGES_DEFAULT})",
    )
    samples.add_argument(
        "--prompt", metavar="TEXT", help="asked of every image without a prompt of its own (default: the family's)"
    )
    samples.add_argument(
        "--num_samples", type=int, default=1, metavar="N", help="take N of the images, chosen by the seed (default: 1)"
    )
    samples.add_argument(
        "--max_pixels",
        type=int,
        metavar="N",
        help=f"largest area an image is resized to ({WITH_LIMITS}; default: the checkpoint's)",
    )
    add_sampling(samples)
    samples.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of images (default: 0)")
    job = parser.add_argument_group("job")
    job.add_argument(
        "--device_type",
        choices=("npu", "cuda", "cpu"),
        help="default: the NPU where there is one, else CUDA, else the CPU",
    )
    job.add_argument(
        "--trust_remote_code",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="run code that the checkpoint brings (default: False)",
    )
    job.add_argument("--quiet", action="store_true", help="print errors only")


def run(args: argparse.Namespace) -> int:
    """0. Raises UsageError, QuantError as dump.dump does."""
    from ..onnx.export import is_model

    if is_model(args.model_path):
        from . import onnx

        return onnx.dump(args)
    if args.inputs and (args.images or args.prompt):
        raise UsageError("--inputs takes images and prompts from an earlier dump; leave out --images and --prompt")
    config = QuantConfig(
        prompt=args.prompt,
        num_samples=args.num_samples,
        max_pixels=args.max_pixels,
        fps=args.fps,
        max_frames=args.max_frames,
        seed=args.seed,
        dev_type=args.device_type,
        trust_remote_code=args.trust_remote_code,
    )

    from ..base.console import Reporter
    from ..compare.dump import dump

    reporter = Reporter(args.quiet)
    manifest = dump(
        args.model_path,
        args.directory,
        config,
        args.images,
        modules=args.modules,
        inputs=args.inputs,
        reporter=reporter,
    ).manifest
    reporter.line(f"{len(manifest['features'])} features of {len(manifest['samples'])} samples in {args.directory}")
    if manifest["repeat"]:
        worst = max(manifest["repeat"], key=manifest["repeat"].get)
        reporter.line(
            f"nondeterministic: {len(manifest['repeat'])} features differ when run again, {worst} by"
            f" {manifest['repeat'][worst]:.3g}"
        )
    return 0
