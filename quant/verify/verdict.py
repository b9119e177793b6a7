"""What verify's measurements mean: passed or not, and if not, whose fault it is. Works on the report as a dict, without
torch.

Asked in this order, the first yes decides:
    export         is a tensor damaged? Then nothing else counts, even if the answers look well: servers read different
                   tensors.
    (passed)       is the export within every threshold?
    calibration    is a linear's input clipped beyond the threshold? Its range was taken from images unlike these.
    quantization   does the rounded model miss the thresholds, too, or is the export hardly worse? Then W8A8 with this
                   folding is what costs.
    calibration    have all linears that are worse than rounded a range that is too narrow or too wide for these images,
                   or lose no more than theirs explains?
    reading        the tensors are right, the ranges suit, W8A8 suffices, and still the export computes something else.

The thresholds were chosen on what docs/accuracy.md measured of a real language model's perplexity: a KL divergence of
0.01 is about +0.7 %, so 0.02 lets +1.4 % pass and no more; docs/verify.md lists what damage does, far beyond that.
"""

import math
import time

SCHEMA = 1  # of what --json writes; docs/verify.md
THRESHOLDS = {
    "kl": (0.02, "largest mean KL divergence, nats"),
    "top1": (
        0.97,
        (
            "least share of decided positions that rank the same token first (decided: the float model's first token is"
            " twice as likely as its second)"
        ),
    ),
    "snr": (10.0, "least signal-to-noise ratio after any block, dB"),
    "clipped": (0.05, "largest share of a linear's input that may be clipped"),
}
BEHIND = 3.0  # dB by which an export must be worse than the rounded model for that to mean something
ENOUGH = 20  # decided positions, below which a share of them says little and "top1" is not asked for
NARROW, WIDE = 0.05, 0.5  # shares of a linear's range, seen beyond it or needed of it, that make it unsuited
CODES = 255  # steps of a range
CULPRITS = {  # cause -> in words
    "export": "the export is damaged",
    "calibration": "the calibration does not cover these images",
    "quantization": "the quantization costs too much",
    "reading": "the export computes something else than its tensors say",
}
ADVICE = {
    "export": "the export is damaged; write it again, or look at what wrote it",
    "calibration": (
        "the ranges of the calibration do not suit these images; calibrate with images like them, or with more"
    ),
    "quantization": (
        "W8A8 costs too much here; try another --anti_method, or keep the linears with the least dB float"
        " (--disable_names)"
    ),
    "reading": "the tensors are right and W8A8 is not at fault: the way they are read or computed is; please report it",
}


def conclude(report: dict, findings: list, start: float) -> dict:
    """Completes the report: findings, verdict, passed, seconds. NaN and Inf become None, which JSON can hold."""
    report["findings"] = [{"tensor": finding.tensor, "problem": finding.problem} for finding in findings]
    report["verdict"] = verdict(report)
    report["passed"] = report["verdict"]["cause"] is None
    if report["passed"]:
        report["notices"] += room_for_better(report)
    report["seconds"] = round(time.perf_counter() - start, 1)
    return without_infinities(report)


def verdict(report: dict) -> dict:
    """{"cause": a key of ADVICE or None, "reasons": lines, "advice", "first_bad_block", "first_bad_linear"}."""
    block, linear = falls_off(report)
    cause, reasons = judge(report)
    return {
        "cause": cause,
        "reasons": reasons,
        "advice": ADVICE[cause] if cause else None,
        "first_bad_block": block,
        "first_bad_linear": linear,
    }


def judge(report: dict) -> tuple[str | None, list[str]]:
    """(cause: a key of ADVICE, or None where all is well; the reasons, a line each)."""
    if report["findings"]:
        return "export", [f"{finding['tensor']}: {finding['problem']}" for finding in report["findings"]]
    missed, clipped = missed_thresholds(report, "export"), clipping(report)
    if clipped:
        return "calibration", clipped + missed
    if not missed:
        return None, []
    worse = [
        entry
        for entry in report["blocks"] + linears(report)
        if decibels(entry, "export") < decibels(entry, "rounded") - BEHIND
    ]
    if missed_thresholds(report, "rounded") or not worse:
        return "quantization", missed
    worse_linears = [entry for entry in worse if "linear" in entry]
    unsuited = [misfit for entry in worse_linears if (misfit := range_misfit(entry))]
    if unsuited and len(unsuited) == len(worse_linears):
        return "calibration", unsuited + missed
    return "reading", missed


def missed_thresholds(report: dict, model: str) -> list[str]:
    """The thresholds that "export" or "rounded" misses, in words."""
    limits, logits, missed = report["thresholds"], report["logits"][model], []
    if not logits["kl"] <= limits["kl"]:
        missed.append(f"KL divergence {logits['kl']:.3g}, at most {limits['kl']:g} is allowed")
    if report["logits"]["decided"] >= ENOUGH and not logits["top1_decided"] >= limits["top1"]:
        missed.append(
            f"{logits['top1_decided']:.1%} of the decided positions rank the same token first, at least"
            f" {limits['top1']:.1%} are asked for"
        )
    worst = min(report["blocks"], key=lambda block: decibels(block, model))
    if decibels(worst, model) < limits["snr"]:
        missed.append(
            f"{decibels(worst, model):.1f} dB after {worst['block']}, at least {limits['snr']:g} are asked for"
        )
    return missed


def range_misfit(entry: dict) -> str | None:
    """What is wrong with the range of a linear's codes, given what its input reached; None where it suits."""
    if entry["range_covered"] is None:
        return None  # dynamic: the server scales every token by itself
    (lo, hi), (least, most) = entry["range_seen"], entry["range_covered"]
    beyond = max(least - lo, hi - most) / (most - least)
    needed = (max(hi, 0) - min(lo, 0)) / (most - least)
    if beyond < NARROW and needed > WIDE:
        lost = decibels(entry, "rounded") - decibels(entry, "export")
        if lost >= lost_by_range(max(beyond, 0.0), needed, entry["clipped_share"]) + BEHIND:
            return None
    return f"{entry['linear']}: its codes cover {least:.3g} to {most:.3g}, its input goes from {lo:.3g} to {hi:.3g}"


def lost_by_range(beyond: float, needed: float, clipped: float) -> float:
    """dB that a range loses at most against one that suits, shares of its width. A step d makes errors of d^2 / 12 in
    the mean; of a suiting range it is `needed` times as long; what is clipped is off by up to beyond * CODES steps.
    """
    return 10 * math.log10(1 + 12 * clipped * (beyond * CODES) ** 2) - 20 * math.log10(needed)


def room_for_better(report: dict) -> list[str]:
    """Of a good export: the linear that falls furthest behind its rounding afresh, if any does."""
    behind = [
        (decibels(entry, "rounded") - decibels(entry, "export"), number) for number, entry in enumerate(linears(report))
    ]
    most, number = max(behind, default=(0, 0))
    if most < BEHIND:
        return []
    entry = linears(report)[number]
    why = range_misfit(entry) or f"{entry['linear']}: its range is not the cause"
    return [f"up to {most:.0f} dB are lost against rounding afresh. {why}"]


def clipping(report: dict) -> list[str]:
    """The linears of whose input too large a share is clipped, a line each."""
    limit = report["thresholds"]["clipped"]
    return [
        f"{entry['linear']}: {entry['clipped_share']:.2%} of its input is clipped, at most {limit:.2%} are allowed"
        for entry in linears(report)
        if entry["clipped_share"] > limit
    ]


def falls_off(report: dict) -> tuple[str | None, str | None]:
    """The first block and the first linear, in the order of the data, that miss "snr", or fall behind the rounded model
    and below twice that.
    """
    limit = report["thresholds"]["snr"]

    def bad(entry: dict) -> bool:
        export, rounded = decibels(entry, "export"), decibels(entry, "rounded")
        return export < limit or export < min(rounded - BEHIND, 2 * limit)

    first_block = next((block["block"] for block in report["blocks"] if bad(block)), None)
    return first_block, next((entry["linear"] for entry in linears(report) if bad(entry)), None)


def linears(report: dict) -> list[dict]:
    """The records of all int8 linears, in the order of the data."""
    return [entry for block in report["blocks"] for entry in block["linears"]]


def decibels(entry: dict, model: str) -> float:
    """A record's signal-to-noise ratio of `model` ("rounded" or "export"), dB; -inf where the model computed NaN."""
    value = entry[model]["snr_db"]
    return -math.inf if value is None or math.isnan(value) else value


def without_infinities(value):
    """A JSON value with None in the place of NaN and Inf, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
