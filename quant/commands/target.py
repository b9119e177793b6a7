"""What --target and --world_size make of a request before any work: choices that follow from them, and refusals."""

import argparse

from ..base.config import QuantConfig
from ..base.errors import UsageError
from ..families import family_of
from .export import servers_of


def server(profile: str | None, target: str | None) -> str | None:
    """Whose rules the result is checked against: --target's, else the profile's, None for those of the format. Raises
    UsageError where the profile is for one server and --target names another.
    """
    if profile in (None, "both"):
        return target
    if target not in (None, profile):
        raise UsageError(
            f"--profile {profile} --target {target}: the profile is for {profile} alone; leave --target out"
        )
    return profile


def for_world_size(config: QuantConfig, args: argparse.Namespace) -> tuple[QuantConfig, str | None]:
    """The choices for --world_size NPUs, and what to say where the number makes one: the vision tower stays float where
    MindIE computes an int8 one wrongly on several. Raises UsageError for a number that a server cannot divide the model
    by, and for --vision int8 where it would be wrong.
    """
    size = args.world_size
    if size == 1 or args.save_type == "compressed-tensors":
        return config, None
    from ..files.checkpoint import Checkpoint
    from ..servers.rules.deployment import MINDIE_WORLD_SIZES, largest_even, uneven

    described = Checkpoint(args.model_path).config
    family = family_of(described, args.model_path)
    save_type = "mindie" if args.mindie_format else args.save_type or "ascendV1"
    dynamic = config.scheme == "W8A8_DYNAMIC" or config.dynamic_names or config.profile == "vllm-ascend"
    servers = servers_of(args.target, save_type, args.act or ("dynamic" if dynamic else "static"))
    if "vllm-ascend" in servers and (parts := uneven(family, described, size)):
        raise UsageError(
            f"--world_size {size}: vLLM-Ascend cannot divide {', '.join(parts)} by it; use"
            f" {largest_even(family, described, size)}, or --target mindie"
        )
    if "mindie" not in servers:
        return config, None
    if size not in MINDIE_WORLD_SIZES:
        sizes = ", ".join(map(str, MINDIE_WORLD_SIZES))
        raise UsageError(f"--world_size {size}: MindIE takes {sizes}; use one of these, or --target vllm-ascend")
    if family.mindie_transposed is None or config.vision == "float":
        return config, None
    fault = f"MindIE on {size} NPUs uses {family.mindie_transposed} of an int8 vision tower transposed"
    if config.vision == "int8":
        raise UsageError(f"--vision int8 --world_size {size}: {fault}: leave --vision out, or use --target vllm-ascend")
    return config.model_copy(update={"vision": "float"}), f"vision   float: {fault}, without an error"


def refuse(plan, target: str | None) -> None:
    """Raises UsageError before any work where the server that was named would not load what was asked for."""
    if target not in ("mindie", "all") or "W8A8_DYNAMIC" not in plan.schemes:
        return
    vision = [name for name in plan.words if name.startswith(plan.family.tower("vision").prefix)]
    if dynamic := [name for name in vision if plan.words[name] == "W8A8_DYNAMIC"]:
        raise UsageError(
            f"--target {target}: {dynamic[0]} would be W8A8_DYNAMIC, and MindIE's vision tower takes static W8A8 or"
            " float; use --vision float, or --target vllm-ascend"
        )
    experts = {name for name in plan.words if ".experts." in name} if plan.family.mindie_experts else set()
    if len({word for name, word in plan.words.items() if name not in experts}) > 1:
        raise UsageError(
            f"--target {target}: MindIE takes one type for all int8 linears, not"
            f" {' beside '.join(sorted(plan.schemes))}; use --scheme alone, or --target vllm-ascend"
        )
