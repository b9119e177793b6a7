"""The lines before and after a run: what will be done, and what came of it."""
from pathlib import Path

from .calibrator import Calibrator, peak_memory
from .console import duration, size
from .plan import Plan
from .workload import multiply_adds


def header(calibrator: Calibrator) -> None:
    """What is quantized, how, on what, from which samples."""
    config, plan, say = calibrator.config, calibrator.plan, calibrator.reporter.line
    calibrator.prepare()
    why = "" if config.dev_type else " (the first usable of NPU, CUDA, CPU; --device_type chooses)"
    say(f"model    {calibrator.family.name}, {size(calibrator.checkpoint.nbytes)}, {calibrator.checkpoint.dir}")
    say(f"device   {calibrator.device}{why}")
    say(f"method   {_method(calibrator)}")
    say(f"dtype    {_name(calibrator.checkpoint.dtype)} in, {_name(calibrator.export_dtype)} out, computed in {_name(calibrator.compute_dtype)}")
    say(f"samples  {len(calibrator.samples.keys)} images, sha256 {calibrator.samples.digest[:12]}")
    say(f"linears  {len(plan.int8_names)} int8, {len(plan.decisions) - len(plan.int8_names)} float")
    say()


def _name(dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _method(calibrator: Calibrator) -> str:
    config = calibrator.config
    if config.anti_method == "none":
        return "plain rounding, no outlier suppression"
    if config.engine != "native":
        return f"{config.anti_method}, act_method {config.act_method}, by {config.engine}"
    return f"{config.anti_method} on {len(calibrator.plan.smoothed)} groups, act_method {config.act_method}"


def summary(calibrator: Calibrator, target: Path) -> None:
    """What came of it: layers, share of the arithmetic, sizes, time, memory, where."""
    plan, say = calibrator.plan, calibrator.reporter.line
    int8, total = multiply_adds(calibrator)
    written = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    say()
    say(f"layers   {len(plan.int8_names)} int8, {len(plan.decisions) - len(plan.int8_names)} float; {int8 / total:.1%} of the multiply-adds in int8")
    say(f"size     {size(calibrator.checkpoint.nbytes)} -> {size(written)}")
    say(f"time     {duration(calibrator.seconds)}, peak memory {size(peak_memory())}")
    say(f"result   {target}")


def decisions_table(plan: Plan) -> list[str]:
    """One aligned line per kind of linear: blocks that are treated alike are one line, with their number."""
    kinds: dict[tuple, int] = {}
    for decision in plan.decisions.values():
        block = plan.family.block_of(decision.name)
        name = decision.name if block is None else f"{block[0].prefix}*{decision.name[len(block[0].block(block[1])) - 1 :]}"
        key = (name, decision.shape, decision.int8, decision.why)
        kinds[key] = kinds.get(key, 0) + 1
    width = max(len(name) for name, *_ in kinds)
    return [f"{name:<{width}}  {count:>3} x {shape[0]:>6} x {shape[1]:<6} {'int8 ' if int8 else 'float'}  {'' if int8 else why}".rstrip() for (name, shape, int8, why), count in kinds.items()]
