"""--max_drop: what leaves static int8 is measured, then quantized so."""

import argparse
from typing import TYPE_CHECKING

from ..base.config import QuantConfig
from ..base.errors import QuantError, UsageError
from .analyze import analyse, outcome

if TYPE_CHECKING:
    from ..base.console import Reporter

CHOSEN = ("scheme", "disable_names", "disable_names_only", "dynamic_names")  # by the bound


def bounded(args: argparse.Namespace, config: QuantConfig, reporter: "Reporter", alone: bool) -> QuantConfig:
    """The choices with which the loss stays below --max_drop. alone: whether this process was not started by a
    launcher, for which it is one of several.

    Raises UsageError for flags that choose the same, QuantError where the bound cannot be reached.
    """
    for flag in CHOSEN:
        if getattr(config, flag) != QuantConfig.model_fields[flag].default:
            raise UsageError(f"--{flag} with --max_drop: the bound chooses what leaves static int8; leave one out")
    if args.dry_run:
        raise UsageError(
            "--dry_run with --max_drop: what leaves int8 is measured; use `python -m quant analyze` for it"
        )
    if not alone:
        raise UsageError(
            "--max_drop under a launcher: every process would measure; run `python -m quant analyze` once, and give"
            " --disable_names_only and --dynamic_names its files"
        )
    images = args.max_drop_images
    kinds = ("static", "dynamic") if config.profile == "vllm-ascend" else ("static",)
    _, chosen = analyse(args.model_path, config, args.calib_images, images, None, args.max_drop, reporter, kinds)
    assert chosen is not None
    for line in outcome(chosen, args.max_drop):
        reporter.line(line)
    if not chosen.reached:
        raise QuantError(
            f"--max_drop {args.max_drop:.2%}: not reached, KL {chosen.measured:.3g} with what is chosen; raise it"
        )
    found = {"disable_names_only": tuple(chosen.floats), "dynamic_names": tuple(chosen.dynamics)}
    return config.model_copy(update=found)
