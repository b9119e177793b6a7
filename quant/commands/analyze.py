"""python -m quant analyze: what rounding each input group costs the logits, and which to move for a bound."""

import argparse
import json
from math import log1p
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.choices import METHODS, PROFILES
from ..base.config import HELD_OUT, QuantConfig
from ..base.errors import UsageError
from .cli import IMAGES, IMAGES_DEFAULT, add_sampling, boolean, share
from .flags import default

if TYPE_CHECKING:
    from ..base.console import Reporter
    from ..verify.selection import Selection
    from ..verify.sensitivity import Sensitivity

FILES = {"float": "float.txt", "dynamic": "dynamic.txt", "all": "analysis.json", "plot": "analysis.html"}
SHOWN = 20  # groups in the table
PICTURES, TEXT_TOKENS = 1, 400  # to measure each group on, and as many to check a choice on: all take a forward of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("model_path", metavar="SRC", help="directory of the float checkpoint; never written to")
    parser.add_argument(
        "--save_directory",
        metavar="DIR",
        help=(
            f"where {FILES['all']}, {FILES['plot']} and, with --max_drop, {FILES['float']} and {FILES['dynamic']} go:"
            " empty or not there yet"
        ),
    )
    parser.add_argument("--max_drop", type=share, metavar="X%", help="choose what must leave static int8 for this loss")
    parser.add_argument("--profile", choices=PROFILES, help=f"the server (default: {default('profile')})")
    parser.add_argument("--calib_images", metavar="PATH", help=f"{IMAGES} ({IMAGES_DEFAULT})")
    parser.add_argument("--images", metavar="PATH", help=f"what to measure on (default: {HELD_OUT.parent.name}/ of it)")
    parser.add_argument("--anti_method", choices=METHODS, help=f"(default: {default('anti_method')})")
    parser.add_argument("--vision", choices=("int8", "float"), help="the vision tower (default: as in quantize)")
    parser.add_argument("--num_samples", type=int, metavar="N", help=f"measure on N images (default: {PICTURES})")
    parser.add_argument("--max_pixels", type=int, metavar="N", help="largest area an image is resized to")
    add_sampling(parser, None)
    parser.add_argument("--seed", type=int, metavar="N", help=f"(default: {default('seed')})")
    parser.add_argument("--device_type", choices=("npu", "cuda", "cpu"), help="default: NPU, else CUDA, else CPU")
    parser.add_argument("--trust_remote_code", type=boolean, metavar="BOOL", help="run the checkpoint's code")
    parser.add_argument("--log_file", metavar="FILE", help="append what is printed to FILE, with the time")
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def run(args: argparse.Namespace) -> int:
    """0; 1 where the bound cannot be reached. Raises UsageError and QuantError as quantize and verify do."""
    names = ["profile", "anti_method", "vision", "max_pixels", "fps", "max_frames"]
    names += ["seed", "device_type", "trust_remote_code"]
    config = QuantConfig(**{name: getattr(args, name) for name in names if getattr(args, name) is not None})

    from ..base.console import Reporter
    from ..base.output import appearing, check_output

    reporter = Reporter(args.quiet, args.log_file)
    directory = check_output(args.save_directory, Path(args.model_path)) if args.save_directory else None
    found, chosen = analyse(
        args.model_path, config, args.calib_images, args.images, args.num_samples, args.max_drop, reporter
    )
    for line in table(found):
        reporter.line(line)
    for line in outcome(chosen, args.max_drop) if chosen else ():
        reporter.line(line)
    if directory:
        with appearing(directory) as target:
            write(target, Path(args.model_path), found, chosen)
        reporter.line(f"result   {directory}")
    return 0 if chosen is None or chosen.reached else 1


def analyse(
    source: str | Path,
    config: QuantConfig,
    calib_images: str | None,
    images: str | Path | None,
    num_samples: int | None,
    bound: float | None,
    reporter: "Reporter",
    kinds: tuple[str, ...] = ("static", "dynamic", "company"),
) -> "tuple[Sensitivity, Selection | None]":
    """Everything in static W8A8 once, in a temporary directory; what each group of it costs; and what to move so that
    the KL divergence is at most ln(1 + bound), a share. images: what to measure on, None for what ships apart from
    calibration; kinds: of costs, sensitivity.KINDS. With a bound, one half of these samples is for choosing, and the
    other for checking what was chosen.

    Raises UsageError for one sample where two are needed, and as Calibrator and prepare do.
    """
    import tempfile

    from ..calibrate.calibrator import Calibrator
    from ..export import reader
    from ..inputs.samples import prepare
    from ..verify.selection import nats, settle
    from ..verify.sensitivity import Analysis

    static = {"scheme": "W8A8", "profile": "both", "disable_names": (), "disable_names_only": (), "dynamic_names": ()}
    calibrator = Calibrator(source, config.model_copy(update=static), calib_images, reporter)
    halves = 2 if bound else 1
    most = {"num_samples": num_samples or halves * PICTURES, "text_tokens": halves * TEXT_TOKENS}
    own = config.model_copy(update={"calib_text": "none", **most})
    samples = prepare(images or HELD_OUT, calibrator.checkpoint, calibrator.family, own)
    inputs = [samples.whole(number) for number in range(len(samples.keys))]
    if bound and len(inputs) < 2:
        raise UsageError(f"{images or HELD_OUT}: holds one sample; one to choose by and one to check are needed")
    with tempfile.TemporaryDirectory(prefix="quant-analysis-") as folder:
        calibrator.run(folder)
        calibrator.save(Path(folder) / "export")
        calibrator.close()
        analysis = Analysis(
            calibrator.checkpoint,
            reader.read(Path(folder) / "export"),
            calibrator.family,
            calibrator.device,
            inputs[::halves],
            config.trust_remote_code,
            kinds,
        )
        blocks = sum(tower.used(calibrator.checkpoint.config) for tower in calibrator.family.towers)
        with reporter.progress("analysis", blocks) as advance:
            found = analysis.run(advance)
        if not bound:
            return found, None
        dynamic = config.profile == "vllm-ascend"
        return found, settle(found, analysis.roundings, inputs[1::2], nats(bound), dynamic)


def table(found: "Sensitivity") -> list[str]:
    """The costliest groups, a line each, 80 columns."""
    from ..verify.selection import rank_correlation

    alone, company = [group.static for group in found.groups], [group.company for group in found.groups]
    ranked = sorted(found.groups, key=lambda group: group.static, reverse=True)
    lines = [
        "",
        f"KL at {found.positions} positions, in millinats: each group of linears alone in int8,",
        "the others float; company: what it gives back, kept float, when all are static",
        "",
        f"{'block':<13}{'linears':<29}{'of all':>7}{'static':>9}{'dynamic':>9}{'company':>9}",
    ]
    for group in ranked[:SHOWN]:
        leaves = [name.rpartition(".")[2] for name in group.linears]
        names = " ".join(leaves) if len(leaves) < 4 else f"{leaves[0]} and {len(leaves) - 1} more"
        values = (1e3 * value for value in (group.static, group.dynamic, group.company))
        numbers = "".join(f"{value:>9.3f}" for value in values)
        lines.append(f"{group.tower} {group.block:<{12 - len(group.tower)}}{names:<29.28}{group.share:>7.1%}{numbers}")
    if len(ranked) > SHOWN:
        lines.append(f"and {len(ranked) - SHOWN} more groups")
    total = sum(alone)
    return [
        *lines,
        "",
        f"all of them static: {1e3 * found.kl:.3f}; the sum of what they cost alone: {1e3 * total:.3f}",
        f"rank correlation of alone and in company: {rank_correlation(alone, company):.2f}",
    ]


def outcome(chosen: "Selection", bound: float) -> list[str]:
    """What was chosen for the bound, a share, and what it costs on the samples that it was not chosen by."""
    limit = f"at most {log1p(bound):.4f}" if chosen.reached else f"{log1p(bound):.4f} is NOT reached"
    return [
        f"bound    {chosen.moved:.1%} of the multiply-adds leave static int8:",
        f"         {chosen.floating:.1%} to float ({len(chosen.floats)} linears),"
        f" {chosen.moved - chosen.floating:.1%} to W8A8_DYNAMIC ({len(chosen.dynamics)})",
        f"         KL {chosen.measured:.4f} on samples not chosen by, {limit}",
    ]


def write(directory: Path, source: Path, found: "Sensitivity", chosen: "Selection | None") -> None:
    """The files of FILES. source: the float checkpoint."""
    from dataclasses import asdict

    from ..export.recipe import identities
    from ..report import costs

    record: dict = asdict(found) | {"identity": identities(None, source)}
    if chosen:
        record["chosen"] = asdict(chosen)
        for kind in ("float", "dynamic"):
            lines = [f"# for --{'disable_names_only' if kind == 'float' else 'dynamic_names'} @{FILES[kind]}"]
            (directory / FILES[kind]).write_text("\n".join([*lines, *record["chosen"][f"{kind}s"]]) + "\n")
    (directory / FILES["all"]).write_text(json.dumps(record, indent=1) + "\n")
    (directory / FILES["plot"]).write_text(costs.page(found), encoding="utf-8")
