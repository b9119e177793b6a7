"""What a run leaves on record: of each block its entry in quant_run.json and its line on the terminal; and the two
files that go with an export.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..arithmetic.product import product_on
from ..arithmetic.stats import Stats
from ..base.config import TEXT_FILE
from ..base.output import FILE_MODE, replace_file
from ..export.recipe import RECIPE, RUN_LOG, recipe
from ..files.config_json import write_json
from ..model.device import peak_memory, peak_on_card


@dataclass
class GroupRange:
    """A group's input before and after smoothing: its range [lo, hi], and the largest |x| of its median channel, of the
    channel that 1 % exceed, and of its largest. The last two far above the first are outlier channels. outside: share
    of the values of held-out samples, 0 to 1, that the int8 codes do not reach; None where there is no range, or none.
    """

    linears: list[str]
    before: tuple[float, float]
    after: tuple[float, float]
    channels_before: tuple[float, float, float]
    channels_after: tuple[float, float, float]
    outside: float | None = None


def group_range(linears: list[str], before: Stats, after: Stats, outside: float | None = None) -> GroupRange:
    """linears: names; before, after: the statistics of what they read, without and with smoothing; outside: as in
    GroupRange.
    """
    return GroupRange(linears, _extent(before), _extent(after), _channels(before), _channels(after), outside)


def _extent(stats: Stats) -> tuple[float, float]:
    return stats.lo.min().item(), stats.hi.max().item()


def _channels(stats: Stats) -> tuple[float, float, float]:
    largest = torch.maximum(stats.hi, -stats.lo).cpu()
    median, most, all_of_them = largest.quantile(torch.tensor([0.5, 0.99, 1.0])).tolist()
    return median, most, all_of_them


def block_entry(name: str, result, seconds: float) -> dict:
    """A block's part of quant_run.json. result: a block.BlockResult; seconds: of wall time, reading included."""
    return {
        "block": name,
        "int8": [linear.name for linear in result.linears],
        "snr_plain_db": result.snr_plain,
        "snr_db": result.snr,
        "snr_held_out_db": result.snr_held_out,
        "ranges": [asdict(entry) for entry in result.ranges],
        "seconds": round(seconds, 3),
        "steps": {step: round(took, 3) for step, took in result.seconds.items()},
    }


def block_line(entry: dict, anti_method: str) -> str:
    """The same as a line for the terminal."""
    name, seconds = f"{entry['block']:<34}", f"{entry['seconds']:6.2f} s"
    if not entry["int8"]:
        return f"{name} {'float':<36} {seconds}"
    change = "" if anti_method == "none" else f"{entry['snr_plain_db']:.1f} -> "
    held = "" if math.isnan(entry["snr_held_out_db"]) else f"{entry['snr_held_out_db']:.1f} unseen"
    return f"{name} {len(entry['int8']):>2} int8 {change + format(entry['snr_db'], '.1f'):>12} dB {held:>11} {seconds}"


def write_records(calibrator, directory: Path, identity: dict[str, str]) -> None:
    """quant_recipe.json and quant_run.json of a Calibrator that has run, and what its model wrote for it. In the second
    file seconds are of wall time, memory is in bytes, and a signal-to-noise ratio that was not measured is null.
    identity: what a finished job is known by when it is asked for again.
    """
    write_json(directory / RECIPE, recipe(calibrator))
    log = {
        "seconds": round(calibrator.seconds, 1),
        "peak_memory_bytes": peak_memory(),
        "peak_card_bytes": peak_on_card(calibrator.device),
        "device": calibrator.device,
        "int8_product": product_on(calibrator.device).name if calibrator.config.engine == "native" else None,
        "identity": identity,
        "tokens": calibrator.samples.counts() | {"different": calibrator.samples.different_words},
        "blocks": calibrator.blocks,
    }
    replace_file(directory / RUN_LOG, (json.dumps(log, indent=1).replace("NaN", "null") + "\n").encode())
    if (text := calibrator.own_text) and not text.refused:
        replace_file(directory / TEXT_FILE, text.lines)
    for name in (RECIPE, RUN_LOG):
        (directory / name).chmod(FILE_MODE)
