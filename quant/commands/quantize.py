"""python -m quant quantize, and the scripts of the families: the same flags, the vendor's names and defaults."""

import argparse
from pathlib import Path

from ..base import transformers_api
from ..base.config import PRESETS, QuantConfig
from ..base.errors import UsageError
from ..families import FAMILIES, script_of
from ..families.family import Family
from . import names, target
from .cli import Guard, expanded
from .export import chosen, verdict
from .flags import add_arguments

__all__ = ["add_arguments", "quant_config", "run", "script"]


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
    from .bound import bounded

    device = pick_device(config.dev_type)
    with joined(device) as ranks:
        reporter = Reporter(args.quiet, args.log_file) if ranks.rank == 0 else Reporter(quiet=True)
        if args.max_drop:
            config = bounded(args, config, reporter, alone=not started_by_launcher())
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
        transformers_api.check_version(models=False)
        guard.code = run(args, wanted)
    return guard.code
