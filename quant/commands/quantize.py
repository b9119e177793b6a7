"""python -m quant quantize, and the scripts of the families: the same flags, the vendor's names and defaults."""

import argparse
from pathlib import Path

from ..base import transformers_api
from ..base.choices import CALIB_TEXT, METHODS, PROFILES, ROUNDINGS, SCHEMES, lines
from ..base.config import ALPHA, MAX_SAMPLES, PRESETS, QuantConfig
from ..base.errors import UsageError
from ..families import FAMILIES, script_of
from ..families.family import Family
from . import names, target
from .cli import IMAGES, IMAGES_DEFAULT, WITH_LIMITS, Guard, boolean, expanded
from .export import add_format, chosen, verdict


def default(choice: str):
    """What QuantConfig takes where nothing is asked for; the flags have no defaults of their own."""
    return QuantConfig.model_fields[choice].default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    paths = parser.add_argument_group("input and output")
    paths.add_argument(
        "--model_path", required=True, metavar="DIR", help="directory of the float checkpoint; never written to"
    )
    paths.add_argument(
        "--save_directory",
        metavar="DIR",
        help="where the result goes: empty or not there yet (needed unless --dry_run)",
    )
    paths.add_argument(
        "--calib_images",
        metavar="PATH",
        help=f"{IMAGES} ({IMAGES_DEFAULT})",
    )
    paths.add_argument(
        "--calib_text",
        metavar="WHAT",
        help=(
            f"text for the language model beside the images; {lines(CALIB_TEXT)}; or a FILE: .txt, or .jsonl of"
            f' {{"text"}} or {{"prompt", "answer"}} (default: {default("calib_text")})'
        ),
    )
    paths.add_argument(
        "--calib_root",
        metavar="DIR",
        help="refuse images outside of DIR, also by way of links: for data that is not your own",
    )
    paths.add_argument(
        "--part_file_size",
        type=int,
        metavar="N",
        help=f"largest weight file, GiB (default: {default('part_file_size')})",
    )
    paths.add_argument(
        "--mindie_format",
        action="store_true",
        help=(
            "the file names that older MindIE releases look for, as --save_type mindie; the default is for MindIE and"
            " vLLM-Ascend"
        ),
    )
    add_format(paths)
    method = parser.add_argument_group("method")
    method.add_argument(
        "--anti_method",
        choices=METHODS,
        help=f"outlier suppression; {lines(METHODS)} (default: {default('anti_method')})",
    )
    method.add_argument(
        "--alpha", type=float, metavar="A", help=f"m4's migration strength, between 0 and 1 (default: {ALPHA})"
    )
    method.add_argument(
        "--act_method",
        type=int,
        choices=(1, 2, 3),
        help=f"activation range: 1 min-max, 2 histogram, 3 the better of both (default: {default('act_method')})",
    )
    method.add_argument(
        "--w_method",
        choices=ROUNDINGS,
        help=f"rounding of the weights; {lines(ROUNDINGS)} (default: {default('w_method')})",
    )
    method.add_argument(
        "--scheme", choices=SCHEMES, help=f"of int8 linears; {lines(SCHEMES)} (default: {default('scheme')})"
    )
    method.add_argument(
        "--profile",
        choices=PROFILES,
        help=f"the server that the directory is for; {lines(PROFILES)} (default: {default('profile')})",
    )
    method.add_argument(
        "--dynamic_names",
        nargs="+",
        metavar="PATTERN",
        help=(
            "linears that are W8A8_DYNAMIC beside static ones, down_proj of the family's list, too: names, globs, or"
            " @FILE of one a line"
        ),
    )
    method.add_argument(
        "--disable_names",
        nargs="+",
        metavar="PATTERN",
        help="linears to keep float beside the family's list, given alike; --dry_run shows what matches",
    )
    method.add_argument(
        "--disable_names_only", nargs="*", metavar="PATTERN", help="the same in place of the family's list"
    )
    method.add_argument(
        "--vision", choices=("int8", "float"), help="the vision tower (default: what the family's servers load)"
    )
    method.add_argument("--w_bit", type=int, metavar="8", help="bits of the weights; 8 is what servers load")
    method.add_argument("--a_bit", type=int, metavar="8", help="bits of the activations; 8 is what servers load")
    method.add_argument(
        "--dtype",
        choices=("bfloat16", "float16"),
        help=(
            "of everything that stays float (default: the checkpoint's; bfloat16 for a float32 one"
            + "".join(f"; {family.dtype} for {family.name}" for family in FAMILIES.values() if family.dtype)
            + ")"
        ),
    )
    samples = parser.add_argument_group("calibration samples")
    samples.add_argument(
        "--preset",
        choices=PRESETS,
        help=(
            f"prompts and image sizes for a kind of images: ocr for documents ({WITH_LIMITS}); other flags take"
            " precedence"
        ),
    )
    samples.add_argument(
        "--prompt", metavar="TEXT", help="asked of every image without a prompt of its own (default: the family's)"
    )
    samples.add_argument(
        "--num_samples",
        type=int,
        metavar="N",
        help=f"take N of the images, chosen by the seed (default: all, at most {MAX_SAMPLES})",
    )
    samples.add_argument(
        "--text_tokens",
        type=int,
        metavar="N",
        help=f"take at most N tokens of samples that are text alone (default: {default('text_tokens')})",
    )
    samples.add_argument(
        "--strict",
        action="store_true",
        default=None,
        help="stop at the first sample that cannot be used; else it is named, left out and counted",
    )
    samples.add_argument(
        "--token_mix",
        type=float,
        nargs=3,
        metavar=("IMAGE", "PROMPT", "ANSWER"),
        help="shares of the kinds of tokens by which the language model's choices are judged (default: "
        + " ".join(f"{share:g}" for share in default("token_mix"))
        + ")",
    )
    samples.add_argument(
        "--max_pixels",
        type=int,
        metavar="N",
        help=f"largest area an image is resized to ({WITH_LIMITS}; default: the checkpoint's)",
    )
    samples.add_argument(
        "--min_pixels", type=int, metavar="N", help=f"smallest area ({WITH_LIMITS}; default: the checkpoint's)"
    )
    samples.add_argument(
        "--seed", type=int, metavar="N", help=f"of every choice made at random (default: {default('seed')})"
    )
    job = parser.add_argument_group("job")
    job.add_argument(
        "--device_type",
        choices=("npu", "cuda", "cpu"),
        help="default: the NPU where there is one, else CUDA, else the CPU",
    )
    job.add_argument(
        "--num_workers",
        type=int,
        metavar="N",
        help=(
            "processes, one per card (default: one for each card named in ASCEND_RT_VISIBLE_DEVICES or"
            " CUDA_VISIBLE_DEVICES, else one)"
        ),
    )
    job.add_argument(
        "--engine",
        choices=("native", "msmodelslim"),
        help=(
            f"msmodelslim: the vendor's library does the arithmetic, if it is installed (default: {default('engine')})"
        ),
    )
    job.add_argument(
        "--trust_remote_code",
        type=boolean,
        metavar="BOOL",
        help=f"run code that the checkpoint brings (default: {default('trust_remote_code')})",
    )
    job.add_argument(
        "--resume",
        action="store_true",
        help="go on with a job that was interrupted or killed: the same command again, with this; of one that is"
        " finished, say so",
    )
    job.add_argument(
        "--dry_run", action="store_true", help="print every decision and an estimate of memory, disk and time, and stop"
    )
    job.add_argument("--log_file", metavar="FILE", help="append what is printed to FILE, with the time")
    job.add_argument("--quiet", action="store_true", help="print errors only")


def quant_config(args: argparse.Namespace) -> QuantConfig:
    """The flags as a QuantConfig. Raises UsageError for what it refuses."""
    flags = (*QuantConfig.model_fields, "device_type")
    choices = {flag: getattr(args, flag) for flag in flags if getattr(args, flag, None) is not None}
    choices |= {flag: names.patterns(flag, choices[flag]) for flag in names.FLAGS if flag in choices}
    return QuantConfig(**{**PRESETS.get(args.preset, {}), **choices})


def run(args: argparse.Namespace, wanted: Family | None = None) -> int:
    """The exit code. wanted: the family that the calling script is for; None takes any that is supported. Raises
    UsageError for what cannot be done as it was asked for, QuantError for what fails, and KeyboardInterrupt.
    """
    if args.world_size < 1:
        raise UsageError(f"--world_size {args.world_size}: at least 1")
    if args.num_workers is not None and args.num_workers < 1:
        raise UsageError(f"--num_workers {args.num_workers}: at least 1; without it, one for each visible card")
    args.target = target.server(args.profile, args.target)
    config, float_vision = target.for_world_size(quant_config(args), args)
    if not args.dry_run and not args.save_directory:
        raise UsageError("--save_directory is needed: it names where the result goes (--dry_run does without)")

    from ..base.console import Reporter
    from ..calibrate.calibrator import Calibrator
    from ..calibrate.job import job, launch_job
    from ..calibrate.launch import joined, started_by_launcher
    from ..calibrate.summary import dry_run, header, summary
    from ..export import formats
    from ..model.device import pick_device, workers_of

    device = pick_device(config.dev_type)
    with joined(device) as ranks:
        reporter = Reporter(args.quiet, args.log_file) if ranks.rank == 0 else Reporter(quiet=True)
        calibrator = Calibrator(args.model_path, config, args.calib_images, reporter)
        if wanted and calibrator.family is not wanted:
            raise UsageError(
                f"{args.model_path}: is a {calibrator.family.name} model, this script is for {wanted.name}; use"
                f" {script_of(calibrator.family)}, or `python -m quant quantize`, which takes both"
            )
        save_type, act = chosen(args, calibrator.plan.schemes)
        target.refuse(calibrator.plan, args.target)
        if float_vision:
            reporter.line(float_vision)
        if args.dry_run:
            dry_run(calibrator)
            return 0
        workers = 1 if started_by_launcher() else workers_of(device, args.num_workers)
        if workers > 1:
            return launch_job(calibrator, Path(args.save_directory).absolute(), workers, args.resume)
        directory, calibrator.ranks = Path(args.save_directory).absolute(), ranks
        format_ = formats.name_of(save_type, act, calibrator.plan.words.values(), calibrator.family)
        with job(calibrator, directory, args.resume, format_) as work:
            if work:
                header(calibrator)
                calibrator.run(work=work)
            if work and ranks.rank == 0:
                calibrator.save(directory, [save_type], act)
        if ranks.rank == 0:
            if work:
                summary(calibrator, directory)
            verdict(directory, args.target, save_type, act, reporter.line, args.world_size)
    return 0


def script(file: str) -> int:
    """What the script `file` of a family does: as `python -m quant quantize`, for that family's checkpoints alone."""
    wanted = next(family for family in FAMILIES.values() if Path(script_of(family)).name == Path(file).name)
    parser = argparse.ArgumentParser(description=f"Quantize a {wanted.name} checkpoint to W8A8 for Ascend.")
    add_arguments(parser)
    args = expanded(parser.parse_args())
    with Guard(args.log_file) as guard:
        transformers_api.check_version()
        guard.code = run(args, wanted)
    return guard.code
