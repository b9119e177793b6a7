"""The lines before and after a run: what will be done, what it will take, and what came of it."""

import math
import re
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path

from ..arithmetic.product import FAST, product_on
from ..base.config import ENOUGH_WORDS
from ..base.console import duration, size
from ..export.plan import Plan
from ..families.family import Group, Tower
from ..model.device import peak_memory, peak_on_card
from . import estimate
from .calibrator import Calibrator
from .own_text import OwnText

COLUMNS = 80
NUMBER = re.compile(r"\.\d+\.")  # of a module in a list


def dry_run(calibrator: Calibrator) -> None:
    """--dry_run: print every decision, the groups that are smoothed, and what the run will take."""
    plan, say = calibrator.plan, calibrator.reporter.line
    if calibrator.config.calib_text == "self":
        calibrator.own_text = OwnText(refused="a dry run writes none")
    calibrator.prepare()
    say(
        f"{calibrator.family.name}, {size(calibrator.checkpoint.nbytes)}, on {calibrator.device};"
        f" {_samples(calibrator)}"
    )
    say(f"tokens   {_tokens(calibrator)}")
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
        for part in textwrap.wrap(line, COLUMNS - 2, subsequent_indent=" " * 6, break_on_hyphens=False):
            say("  " + part)
    say()
    int8, total = estimate.multiply_adds(calibrator)
    say(f"int8     {int8 / total:.1%} of the multiply-adds")
    say(f"memory   about {size(estimate.memory(calibrator))}")
    say(
        f"disk     {size(estimate.export_bytes(calibrator))} for the result, besides the source's"
        f" {size(calibrator.checkpoint.nbytes)}"
    )
    say(f"time     about {duration(estimate.seconds(calibrator))}")


def _groups(calibrator: Calibrator) -> list[str]:
    lines, plan = [], calibrator.plan
    for tower in calibrator.family.towers if plan.anti_method != "none" else ():
        blocks = range(tower.used(calibrator.checkpoint.config))
        chosen = {
            group: [index for index in blocks if plan.int8_group(tower, index, group)]
            for group in tower.all_groups(calibrator.checkpoint.config)
            if group.source
        }
        lines += [f"{tower.prefix}*"] * any(chosen.values())
        lines += [
            f"{len(indices):>3} x {group.source} -> {_listed(group)}{_of(indices, blocks)}"
            for group, indices in chosen.items()
            if indices
        ]
    return lines


def _of(indices: Sequence[int], blocks: Collection[int]) -> str:
    """Which of the blocks, where it is not all of them."""
    return "" if len(indices) == len(blocks) else f"  blocks {spans(list(indices))}"


def _listed(group: Group) -> str:
    """A group's linears in a line, those of all experts as one."""
    names = dict.fromkeys(_of_any_expert(name) for name in group.linears)
    return ", ".join([*names, *(f"{name} (float)" for name in group.readers)])


def header(calibrator: Calibrator) -> None:
    """What is quantized, how, on what, from which samples."""
    config, plan, say = calibrator.config, calibrator.plan, calibrator.reporter.line
    calibrator.prepare()
    why = "" if config.dev_type else " (the first usable of NPU, CUDA, CPU; --device_type chooses)"
    say(f"model    {calibrator.family.name}, {size(calibrator.checkpoint.nbytes)}, {calibrator.checkpoint.dir}")
    say(f"device   {calibrator.device}{why}")
    say(f"method   {_method(calibrator)}")
    say(
        f"dtype    {_name(calibrator.checkpoint.dtype)} in, {_name(calibrator.export_dtype)} out, computed in"
        f" {_name(calibrator.compute_dtype)}"
    )
    say(f"samples  {_samples(calibrator)}, sha256 {calibrator.samples.digest[:12]}")
    say(f"tokens   {_tokens(calibrator)}")
    say(f"linears  {counts(plan)}")
    say()


def _samples(calibrator: Calibrator) -> str:
    """ "13 with images, 40 of text" and what was left out."""
    samples = calibrator.samples
    texts = samples.texts
    said = f"{len(samples.keys) - texts} with images" + (f", {texts} of text" if texts else "")
    return said + (f", {samples.skipped} skipped" if samples.skipped else "")


def _tokens(calibrator: Calibrator) -> str:
    """How many tokens of each kind the language model sees."""
    samples = calibrator.samples
    seen, different = samples.counts(), samples.different_words
    return (
        f"{seen['image']} of images, {seen['prompt']} of prompts, {seen['answer']} of answers and text"
        f" ({different} different)"
    )


def _coverage(calibrator: Calibrator) -> list[str]:
    """How the blocks do on samples that were held out, and a warning where too little of the language was seen."""
    measured = [entry for entry in calibrator.blocks if entry["int8"] and not math.isnan(entry["snr_held_out_db"])]
    lines = []
    if measured:
        worst = min(measured, key=lambda entry: entry["snr_held_out_db"])
        lines.append(f"unseen   at least {worst['snr_held_out_db']:.1f} dB: {worst['block']}")
    groups = [(each["outside"] or 0.0, each["linears"][0]) for entry in measured for each in entry["ranges"]]
    if groups:
        share, name = max(groups)
        lines.append(f"         {share:.2%} clipped at most: {name}")
    different = calibrator.samples.different_words
    if different < ENOUGH_WORDS and calibrator.config.engine == "native":
        lines.append(f"warning  only {different} different tokens of text were seen; {ENOUGH_WORDS} cover a language")
        lines.append("         better (docs/accuracy.md): --calib_text shipped")
    return lines


def counts(plan: Plan) -> str:
    """ "28 int8, 3 float", and how many of the int8 linears are dynamic, if any."""
    dynamic = sum(word == "W8A8_DYNAMIC" for word in plan.words.values())
    of_them = f" ({dynamic} of them dynamic)" if dynamic else ""
    return f"{len(plan.words)} int8{of_them}, {len(plan.decisions) - len(plan.words)} float"


def _name(dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _method(calibrator: Calibrator) -> str:
    config = calibrator.config
    rounding = "" if config.w_method == "nearest" else f", {config.w_method}"
    rounding += ", biases corrected" if config.bias_correction else ""
    if config.anti_method == "none":
        return f"plain rounding, no outlier suppression{rounding}"
    if config.engine != "native":
        return f"{config.anti_method}, act_method {config.act_method}, by {config.engine}"
    groups = len(calibrator.plan.smoothed)
    return f"{config.anti_method} on {groups} groups, act_method {config.act_method}{rounding}"


def summary(calibrator: Calibrator, target: Path) -> None:
    """What came of it: layers, share of the arithmetic, sizes, time, memory, where."""
    plan, say = calibrator.plan, calibrator.reporter.line
    int8, total = estimate.multiply_adds(calibrator)
    written = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    say()
    say(f"samples  {_samples(calibrator)}")
    say(f"tokens   {_tokens(calibrator)}")
    for line in _coverage(calibrator):
        say(line)
    say(f"layers   {counts(plan)}; {int8 / total:.1%} of the multiply-adds in int8")
    product = product_on(calibrator.device)
    if product.name != FAST and calibrator.config.engine == "native":
        say(f"product  of int8 by {product.name}: {product.why}")
    say(f"size     {size(calibrator.checkpoint.nbytes)} -> {size(written)}")
    card = peak_on_card(calibrator.device)
    say(
        f"time     {duration(calibrator.seconds)}, peak memory"
        f" {size(peak_memory())}{f', on the card {size(card)}' if card else ''}"
    )
    say(f"result   {target}")


def decisions_table(plan: Plan) -> list[str]:
    """Every linear's decision within 80 columns: per tower a line for all blocks that are treated alike, reasons as
    footnotes.
    """
    rows: dict[str, dict[tuple, list[int]]] = {}
    for decision in plan.decisions.values():
        block = plan.family.block_of(decision.name)
        title, linear, index = (
            ("outside the blocks", NUMBER.sub(".*.", decision.name), 0)
            if block is None
            else _in_tower(decision.name, *block)
        )
        rows.setdefault(title, {}).setdefault((linear, decision.shape, decision.scheme, decision.why), []).append(index)
    reasons = list(dict.fromkeys(why for group in rows.values() for _, _, scheme, why in group if not scheme))
    lines = []
    for title, group in rows.items():
        lines.append(title)
        blocks = {index for indices in group.values() for index in indices}
        name = max(len(linear) for linear, *_ in group)
        many = max(len(str(len(indices))) for indices in group.values())
        out, into = (max(len(str(shape[end])) for _, shape, *_ in group) for end in (0, 1))
        for (linear, shape, scheme, why), indices in group.items():
            kind = {"W8A8": "int8", "W8A8_DYNAMIC": "int8 dynamic"}.get(scheme) or f"float [{reasons.index(why) + 1}]"
            some = _of(sorted(set(indices)), blocks)
            lines.append(
                f"  {linear:<{name}} {len(indices):>{many}} x {shape[0]:>{out}} x {shape[1]:<{into}}  {kind}{some}"
            )
    return lines + [f"[{number + 1}] {why}" for number, why in enumerate(reasons)]


def _in_tower(name: str, tower: Tower, index: int) -> tuple[str, str, int]:
    return f"{tower.prefix}*", _of_any_expert(name.removeprefix(tower.block(index))), index


def _of_any_expert(linear: str) -> str:
    return re.sub(r"(\.experts\.)\d+\.", r"\1*.", linear)


def spans(indices: list[int]) -> str:
    """[0, 1, 2, 7] -> "0-2, 7"."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
