"""The flags of `quantize` and of the families' scripts."""

import argparse

from ..base.choices import CALIB_TEXT, METHODS, PROFILES, ROUNDINGS, SCHEMES, lines
from ..base.config import ALPHA, MAX_SAMPLES, PRESETS, QuantConfig
from ..families import FAMILIES
from .cli import IMAGES, IMAGES_DEFAULT, WITH_LIMITS, add_sampling, boolean, share
from .export import add_format


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
        "--bias_correction",
        action="store_true",
        default=None,
        help="static linears take up the mean error of rounding their weights",
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
        "--max_drop",
        type=share,
        metavar="X%",
        help=(
            "in place of the family's list: what must leave static int8 so that the KL divergence is at most ln(1 + X),"
            " as few multiply-adds as that needs; measured, as `python -m quant analyze` does"
        ),
    )
    method.add_argument(
        "--max_drop_images", metavar="PATH", help="what that is measured on (default: what calibration does not see)"
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
    add_sampling(samples, None)
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
