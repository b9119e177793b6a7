"""--dry_run: every decision, and what the run will take, before any work.

    memory  libraries + the larger of (what stands outside the blocks but for the embedding, while a tower is entered;
            three blocks) + the samples' hidden states + second moments, if the rounding of the weights needs them
    disk    the weight files of the result
    time    multiply-adds of one float pass, one search and two measured samples, at the rate of a short matmul here,
            + reading and writing
The rates are measured for a tenth of a second: take the time as a magnitude, not as a promise.
"""

import time
from math import prod

import torch

from ..arithmetic.m2 import STRIDE, THRESHOLDS
from ..arithmetic.smoothing import OUTPUTS
from ..arithmetic.stats import ROWS
from ..base.choices import ROUNDINGS
from ..base.console import duration, size
from .calibrator import Calibrator, peak_memory
from .summary import counts, decisions_table
from .workload import export_bytes, multiply_adds, tokens

DISK_RATE = 1e9  # bytes/s, assumed: between a SATA SSD and NVMe


def dry_run(calibrator: Calibrator) -> None:
    """Print the decisions, the groups and the estimates."""
    plan, say = calibrator.plan, calibrator.reporter.line
    calibrator.prepare()
    say(
        f"{calibrator.family.name}, {size(calibrator.checkpoint.nbytes)}, on {calibrator.device};"
        f" {len(calibrator.samples.keys)} samples"
    )
    say()
    say(f"linears  {counts(plan)}")
    for line in decisions_table(plan):
        say("  " + line)
    say()
    by = (
        plan.anti_method
        if calibrator.config.engine == "native"
        else f"{plan.anti_method}, of which {calibrator.config.engine} takes what it finds"
    )
    say(f"smoothed {len(plan.smoothed)} groups by {by}")
    for line in _groups(calibrator):
        say("  " + line)
    say()
    int8, total = multiply_adds(calibrator)
    say(f"int8     {int8 / total:.1%} of the multiply-adds")
    say(f"memory   about {size(memory(calibrator))}")
    say(
        f"disk     {size(export_bytes(calibrator))} for the result, besides the source's"
        f" {size(calibrator.checkpoint.nbytes)}"
    )
    say(f"time     about {duration(seconds(calibrator))}")


def _groups(calibrator: Calibrator) -> list[str]:
    lines, plan = [], calibrator.plan
    for tower in calibrator.family.towers if plan.anti_method != "none" else ():
        blocks = range(tower.used(calibrator.checkpoint.config))
        counts = {
            group: sum(plan.int8_group(tower, index, group) for index in blocks)
            for group in tower.groups
            if group.source
        }
        lines += [f"{tower.prefix}*"] * any(counts.values())
        lines += [
            f"{count:>3} x {group.source} -> {', '.join(group.linears)}" for group, count in counts.items() if count
        ]
    return lines


def _block_bytes(calibrator: Calibrator) -> dict[str, int]:
    """Largest block of each tower, and what stands outside ("outside") and is read whole, in the compute dtype."""
    sizes: dict[str, int] = {"outside": 0}
    itemsize = calibrator.compute_dtype.itemsize
    for tower in calibrator.family.towers:
        prefix = tower.block(0)
        sizes[tower.name] = sum(
            prod(info.shape) * itemsize
            for name, info in calibrator.checkpoint.tensors.items()
            if name.startswith(prefix)
        )
    for name, info in calibrator.checkpoint.tensors.items():
        if calibrator.family.block_of(name) is None and not name.endswith(("lm_head.weight", "embed_tokens.weight")):
            sizes["outside"] += prod(info.shape) * itemsize
    return sizes


def memory(calibrator: Calibrator) -> int:
    """Peak resident bytes to expect."""
    sizes = _block_bytes(calibrator)
    block = max(sizes["vision"], sizes["language"])
    working = 4 * block  # this one, in int8 plain and smoothed, the next, and the one being written
    hidden = 0
    for tower in calibrator.family.towers:
        width = calibrator.checkpoint.tensors[f"{tower.block(0)}{tower.groups[0].source}.weight"].shape[0]
        hidden = max(hidden, tokens(calibrator, tower) * width * calibrator.compute_dtype.itemsize)
    return peak_memory() + 2 * hidden + max(working, sizes["outside"] + block) + _moments(calibrator)


def _moments(calibrator: Calibrator) -> int:
    """Bytes for the second moments of a block's groups, and for the factor that is made of the largest."""
    if not ROUNDINGS[calibrator.config.w_method].load().needs_moments:
        return 0
    most = 0
    for tower in calibrator.family.towers:
        widths = [
            calibrator.checkpoint.tensors[f"{tower.block(0)}{group.linears[0]}.weight"].shape[1]
            for group in tower.groups_of(calibrator.checkpoint.config, 0)
            if calibrator.plan.int8_group(tower, 0, group)
        ]
        most = max(most, sum(16 * width**2 for width in widths) + 24 * max(widths, default=0) ** 2)
    return most


def seconds(calibrator: Calibrator) -> float:
    """Wall time to expect."""
    float_work = search_work = 0
    searched = calibrator.config.anti_method == "m2"
    for decision in calibrator.plan.decisions.values():
        block = calibrator.family.block_of(decision.name)
        if block and block[1] < block[0].used(calibrator.checkpoint.config):
            float_work += prod(decision.shape) * tokens(calibrator, block[0])
            search_work += (
                decision.int8
                * searched
                * 2
                * (THRESHOLDS // STRIDE + STRIDE)
                * ROWS
                * min(OUTPUTS, decision.shape[0])
                * decision.shape[1]
            )
    probes = 2 / len(calibrator.samples.keys)
    arithmetic = float_work * (1 + probes) / _rate(calibrator, calibrator.compute_dtype) + search_work / _rate(
        calibrator, torch.float32
    )
    return arithmetic + (calibrator.checkpoint.nbytes + export_bytes(calibrator)) / DISK_RATE


def _rate(calibrator: Calibrator, dtype: torch.dtype) -> float:
    """Multiply-adds per second of a matmul on the device."""
    a = torch.randn(512, 1024, device=calibrator.device).to(dtype)
    b = torch.randn(1024, 1024, device=calibrator.device).to(dtype)
    a @ b.T
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < 0.1:
        float((a @ b.T)[0, 0])  # waits for the device
        rounds += 1
    return rounds * 512 * 1024 * 1024 / (time.perf_counter() - start)
