"""Is an export right, and if its answers are bad, whose fault is it?

    the export     a tensor is not what the source's becomes by folding and rounding (tensors.py, folding.py): it is
                   named, without a run
    calibration    the ranges were taken from images unlike these: activations are clipped
    quantization   the export is what it was meant to be, and W8A8 with this folding costs too much: the rounded model
                   is bad, too (three_models.py)
    the reading    the export is bad, the rounded model is good, and nothing above explains it

Measured on given inputs: errors per block and per linear, the Kullback-Leibler divergence of the next token's
distribution
    KL = sum_v p_v (log p_v - log p'_v), p of the float model, mean over the positions after the image,
and whether both models rank the same token first, at these positions (teacher-forced) and in answers that each model
writes itself (free-running, where both fit in memory).

Nothing of what made the export is used: not the calibrator, and of the recipe one word, whether biases were corrected.
"""

import math
import time
from pathlib import Path

import torch
from torch import Tensor

from ..arithmetic.product import product_on
from ..base.config import HELD_OUT, QuantConfig
from ..base.console import SILENT, Reporter
from ..base.errors import UsageError
from ..export import reader
from ..export.reader import Export
from ..export.recipe import VERSION, biases_corrected, identities, source_of
from ..families import family_of
from ..families.family import Family
from ..files.checkpoint import Checkpoint
from ..inputs.calibration_set import CalibrationSet
from ..inputs.encoder import Encoder, follow
from ..inputs.samples import prepare
from ..model.device import pick_device
from ..model.whole import room_for
from . import generation, runtime
from .folding import check_block
from .tensors import Damage, check_config, check_format, check_outside, check_side_files
from .three_models import MODELS, ThreeModels
from .verdict import SCHEMA, THRESHOLDS, conclude

POSITIONS = 64  # at most so many of a sample's last positions are compared
DECIDED = 2.0  # a position is decided where the float model's first token is so many times as likely as its second
IMAGES, TOKENS = 2, 16  # of the free-running comparison


@torch.inference_mode()
def verify(
    quantized: str | Path,
    model_path: str | Path,
    config: QuantConfig,
    images=None,
    *,
    thresholds: dict[str, float] | None = None,
    tokens: int = TOKENS,
    reporter: Reporter = SILENT,
    on_block=lambda record: None,
) -> dict:
    """The report that docs/verify.md describes ("The JSON"), on an export and the float checkpoint it was made from.

    config: prompt, num_samples, max_pixels, seed, dev_type, trust_remote_code are used; images: as Calibrator's
    calib_data, None for HELD_OUT, which calibration does not see. thresholds: in place of some of verdict.THRESHOLDS.
    tokens: how many each model writes itself, 0 for none. on_block: called with every block's record as it is done.
    Raises UsageError, QuantError: a directory that is no checkpoint or no export, of another model, whose config.json
    has another number of blocks than its weights, or that cannot be run.
    """
    start = time.perf_counter()
    limits = {name: value for name, (value, _) in THRESHOLDS.items()} | (thresholds or {})
    checkpoint, export = Checkpoint(model_path), reader.read(quantized)
    family = family_of(checkpoint.config, checkpoint.dir)
    if family_of(export.config, export.dir) is not family:
        raise UsageError(
            f"{export.dir}: is a {export.config['architectures'][0]}, {checkpoint.dir} a {family.architecture}; one"
            " must be made from the other"
        )
    for model in (checkpoint, export):
        family.check_depths(model.config, model.tensors, model.dir)
    device = pick_device(config.dev_type)
    report: dict = {
        "schema": SCHEMA,
        "passed": False,
        "verdict": {},
        "findings": [],
        "notices": check_side_files(checkpoint, export),
    }
    report |= {
        "model_path": str(checkpoint.dir),
        "quantized": str(export.dir),
        "identity": identities(export.dir, checkpoint.dir),
        "layout": export.kind,
        "architecture": family.architecture,
    }
    report |= {
        "device": device,
        "int8_product": product_on(device).name,
        "versions": versions(),
        "thresholds": limits,
        "blocks": [],
        "logits": None,
        "free_running": None,
    }
    if source_of(export.dir) not in (None, report["identity"]["float"]):
        report["notices"].append(f"{export.dir} was made from another float model than {checkpoint.dir}, by its hash")
    damage, settings = check_format(checkpoint, export), check_config(checkpoint, export)
    if damage:  # no server could run it as it is: report all the damage there is, and stop
        damage += check_values(checkpoint, export, family, {entry.tensor for entry in damage})
        return conclude(report, damage + settings, start)
    # What is given, and nothing beside it: text that calibration saw would say nothing.
    own = config.model_copy(update={"calib_text": "none"})
    samples = prepare(images or HELD_OUT, checkpoint, family, own)
    report["notices"] += samples.notices
    report["samples"] = [{"name": name, "sha256": key} for name, key in zip(samples.names, samples.keys)]
    room = room_for(checkpoint, device) if tokens else None
    questions = [samples.asked(number) for number in range(min(IMAGES, len(samples.inputs)))]
    answers = (
        [] if not tokens or room else free_run(runtime.load_float, checkpoint.dir, questions, tokens, device, config)
    )
    inputs = [
        follow(sample, answers[number]) if number < len(answers) and samples.unanswered(number) else sample
        for number, sample in enumerate(samples.inputs)
    ]
    models = ThreeModels(checkpoint, export, family, device, inputs, config.trust_remote_code)
    for tower in family.towers:
        with reporter.progress(f"{tower.name} tower", tower.used(checkpoint.config)) as advance:
            for record in models.run_tower(tower):
                report["blocks"].append(record)
                on_block(record)
                advance()
    report["logits"] = compare_logits(models, inputs)
    if answers:
        theirs = free_run(runtime.load, export.dir, questions, tokens, device, config)
        report["free_running"] = compare_answers(
            samples, answers, theirs, Encoder(checkpoint.dir, trust_remote_code=config.trust_remote_code)
        )
    else:
        report["free_running"] = {"skipped": room or "not asked for"}
    return conclude(report, models.damage + check_outside(checkpoint, export, family) + settings, start)


def versions() -> dict[str, str]:
    """What computed: name -> version."""
    import transformers

    return {"quant": VERSION, "torch": torch.__version__, "transformers": transformers.__version__}


def check_values(checkpoint: Checkpoint, export: Export, family: Family, known: set[str]) -> list[Damage]:
    """Damaged values where the format is right. known: tensors whose format is damaged; blocks that hold one of them
    are left out.
    """
    int8, corrected = set(export.linear_names), biases_corrected(export.dir)
    damage: list[Damage] = []
    for tower in family.towers:
        for index in range(tower.used(checkpoint.config)):
            prefix = tower.block(index)
            names = [name for name in checkpoint.tensors if name.startswith(prefix)]
            if not any(name.startswith(prefix) for name in known):
                source = {name: checkpoint.load(name) for name in names}
                exported = {part: export.load(part) for name in names for part in export.parts(name)}
                damage += check_block(checkpoint.config, tower, index, source, exported, int8, corrected).damage
    return damage + check_outside(checkpoint, export, family, known)


# -- answers that the models write themselves


def free_run(
    load, directory: Path, questions: list[dict[str, Tensor]], tokens: int, device: str, config: QuantConfig
) -> list[Tensor]:
    """The greedy answers to samples, [1, ...], by the whole model: token ids, int64 [<= tokens] each.

    load: runtime.load or load_float.
    """
    model, _ = load(directory, device, trust_remote_code=config.trust_remote_code)
    return [generation.greedy(model, inputs, tokens) for inputs in questions]


def compare_answers(samples: CalibrationSet, wanted: list[Tensor], got: list[Tensor], encoder: Encoder) -> dict:
    """docs/verify.md, "free_running". wanted, got: the float model's token ids and the export's, as free_run gives:
    int64 [<= tokens] each.
    """
    rows: list[dict] = []
    for name, float_ids, int8_ids in zip(samples.names, wanted, got):
        same = 0
        while same < min(len(float_ids), len(int8_ids)) and float_ids[same] == int8_ids[same]:
            same += 1
        longest = max(len(float_ids), len(int8_ids))
        rows.append(
            {
                "name": name,
                "float": encoder.decode(float_ids),
                "export": encoder.decode(int8_ids),
                "tokens": longest,
                "same_from_start": same,
            }
        )
    return {
        "agreement": sum(row["same_from_start"] for row in rows) / sum(row["tokens"] for row in rows),
        "answers": rows,
    }


# -- logits


def compared_positions(inputs: dict[str, Tensor], family: Family, config: dict) -> Tensor:
    """Where the next token is compared, int64 [positions]: after the images and videos, at most the last POSITIONS.
    config: the checkpoint's, in which the family finds their tokens.
    """
    ids, processing = inputs["input_ids"][0], family.processing
    shown = ids == processing.image_token_id(config)
    if processing.video:
        shown |= ids == processing.video.token_id(config)
    image = shown.nonzero()
    start = max(int(image[-1]) + 1 if len(image) else 0, len(ids) - POSITIONS)
    return torch.arange(min(start, len(ids) - 1), len(ids))


def compare_logits(models: ThreeModels, inputs: list[dict[str, Tensor]]) -> dict:
    """{"positions", "decided", "rounded": {"kl", "kl_worst", "top1", "top1_decided"}, "export": ...}: divergences in
    nats, shares from 0 to 1; kl_worst: of the worst sample. inputs: of every sample, [1, ...].
    """
    kl: dict[str, list[Tensor]] = {model: [] for model in MODELS}
    same: dict[str, list[Tensor]] = {model: [] for model in MODELS}
    decided = []
    family, config = models.family, models.checkpoint.config
    for _, logits in models.logits([compared_positions(sample, family, config) for sample in inputs]):
        wanted = logits["float"].float().log_softmax(-1)
        first, second = wanted.topk(2).values.unbind(-1)
        decided.append(first - second >= math.log(DECIDED))
        for model in MODELS:
            other = logits[model].float().log_softmax(-1)
            kl[model].append((wanted.exp() * (wanted - other)).sum(-1).clamp(min=0))
            same[model].append(wanted.argmax(-1) == other.argmax(-1))
    clear = torch.cat(decided)
    result: dict = {"positions": len(clear), "decided": int(clear.sum())}
    for model in MODELS:
        agreed = torch.cat(same[model])
        result[model] = {
            "kl": torch.cat(kl[model]).mean().item(),
            "kl_worst": max(sample.mean().item() for sample in kl[model]),
            "top1": agreed.float().mean().item(),
            "top1_decided": agreed[clear].float().mean().item() if clear.any() else None,
        }
    return result
