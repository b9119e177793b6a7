"""How much there is to do, and what it will take: from shapes and samples alone, before any work.

    memory  libraries + the samples' hidden states + the larger of
                what stands outside the blocks but for the embedding, and a block: when a tower is entered
                four blocks: the one computed, in int8 plain and smoothed, the next, and the one being written;
                and second moments, if the rounding of the weights needs them
    disk    the weight files of the result
    time    multiply-adds of one float pass, of one search and of two measured samples, at the rate of a short matmul
            here, + reading and writing
The rates are measured for a tenth of a second: take the time as a magnitude, not as a promise.
"""

import time
from math import prod

import torch

from ..arithmetic.m2 import STRIDE, THRESHOLDS
from ..arithmetic.smoothing import OUTPUTS
from ..arithmetic.stats import ROWS
from ..base.choices import ROUNDINGS
from ..export.layout import export_layout
from ..export.plan import Decision
from ..families.family import Tower
from ..model.device import peak_memory
from .calibrator import Calibrator

DISK_RATE = 1e9  # bytes/s, assumed: between a SATA SSD and NVMe


def tokens(calibrator: Calibrator, tower: Tower) -> int:
    """Tokens of all calibration samples in the tower's blocks."""
    return sum(tower.tokens(calibrator.checkpoint.config, inputs) for inputs in calibrator.samples.inputs)


def multiply_adds(calibrator: Calibrator) -> tuple[int, int]:
    """(in int8, in all linears) for the calibration samples. Linears outside the blocks count once per language token;
    attention's own products, which no server computes in int8, are left out.
    """
    seen = {tower.name: tokens(calibrator, tower) for tower in calibrator.family.towers}
    int8 = total = 0
    for decision in calibrator.plan.decisions.values():
        block = calibrator.family.block_of(decision.name)
        work = round(prod(decision.shape) * seen[block[0].name if block else "language"] * _share(calibrator, decision))
        total += work
        int8 += work if decision.int8 else 0
    return int8, total


def _share(calibrator: Calibrator, decision: Decision) -> float:
    """What share of the tokens a linear sees: less than all for an expert."""
    tower, index = calibrator.family.block_of(decision.name) or (None, 0)
    if tower is None:
        return 1.0
    return tower.share(calibrator.checkpoint.config, decision.name.removeprefix(tower.block(index)))


def export_bytes(calibrator: Calibrator) -> int:
    """Size of the weight files that will be written."""
    layout = export_layout(calibrator.checkpoint, calibrator.plan, calibrator.export_dtype)
    return sum(prod(shape) * dtype.itemsize for dtype, shape in layout.values())


def _block_bytes(calibrator: Calibrator) -> dict[str, int]:
    """Largest block of each tower, and what stands outside ("outside") and is read whole, in the compute dtype."""
    sizes: dict[str, int] = {"outside": 0}
    itemsize = calibrator.compute_dtype.itemsize
    blocks: dict[tuple[str, int], int] = {}
    family = calibrator.family
    for name, info in calibrator.checkpoint.tensors.items():
        if place := family.block_of(name):
            key = (place[0].name, place[1])
            blocks[key] = blocks.get(key, 0) + prod(info.shape) * itemsize
    for tower in family.towers:
        sizes[tower.name] = max((size for (name, _), size in blocks.items() if name == tower.name), default=0)
    for name, info in calibrator.checkpoint.tensors.items():
        if family.block_of(name) is None and name not in (f"{family.head}.weight", family.embedding_tensor):
            sizes["outside"] += prod(info.shape) * itemsize
    return sizes


def memory(calibrator: Calibrator) -> int:
    """Peak resident bytes to expect."""
    sizes = _block_bytes(calibrator)
    block = max(sizes["vision"], sizes["language"])
    working = 4 * block
    hidden = 0
    for tower in calibrator.family.towers:
        width = tower.width(calibrator.checkpoint.config)
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
            if calibrator.plan.int8_group(tower, 0, group) and group.observed
        ]
        most = max(most, sum(16 * width**2 for width in widths) + 24 * max(widths, default=0) ** 2)
    return most


def seconds(calibrator: Calibrator) -> float:
    """Wall time to expect."""
    float_work, search_work = 0.0, 0
    searched = calibrator.config.anti_method == "m2"
    for decision in calibrator.plan.decisions.values():
        block = calibrator.family.block_of(decision.name)
        if block and block[1] < block[0].used(calibrator.checkpoint.config):
            float_work += prod(decision.shape) * tokens(calibrator, block[0]) * _share(calibrator, decision)
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
