"""The record that goes with an export: quant_recipe.json holds all that its bytes depend on, quant_run.json what the
run measured.
"""

import json
from pathlib import Path

from ..base.config import ALPHA, TEXT_FILE, QuantConfig
from ..base.version import VERSION
from ..files.config_json import read_json
from ..files.fingerprints import RECORDS, describe_all, model_digest

RECIPE, RUN_LOG = RECORDS
NOT_IDENTITY = ("dev_type", "strict", "calib_root")  # what they choose is in the device and the samples


def recipe(calibrator) -> dict:
    """Deterministic: two runs with the same checkpoint, choices, samples and versions write the same."""
    import torch
    import transformers

    config: QuantConfig = calibrator.config
    samples = calibrator.samples
    return {
        "version": VERSION,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "architecture": calibrator.family.architecture,
        "source_sha256": model_digest(calibrator.checkpoint.dir, whole=False),
        "config": config.model_dump(mode="json"),
        "fingerprint": config.fingerprint(),
        "msmodelslim": _version("msmodelslim") if config.engine == "msmodelslim" else None,
        "alpha": (config.alpha or ALPHA) if config.anti_method == "m4" and config.engine == "native" else None,
        "compute_dtype": str(calibrator.compute_dtype).removeprefix("torch."),
        "export_dtype": str(calibrator.export_dtype).removeprefix("torch."),
        "encoder": samples.encoder,
        "calibration_sha256": samples.digest,
        "tokens": samples.counts(),
        "samples": [
            {"name": name, "sha256": key, "image": samples.has_image(number)}
            for number, (name, key) in enumerate(zip(samples.names, samples.keys))
        ],
        "own_text": _own_text(calibrator),
        "smoothed_groups": len(calibrator.plan.smoothed) if config.engine == "native" else None,
        "float": {decision.name: decision.why for decision in calibrator.plan.decisions.values() if not decision.int8},
    }


def _own_text(calibrator) -> dict | None:
    """What the model wrote for its own calibration, or why it did not; None where it was not to."""
    text = calibrator.own_text
    if text is None or text.refused:
        return text and {"refused": text.refused}
    return {
        "file": TEXT_FILE,
        "passages": len(text.written.passages),
        "answers": len(text.written.answers),
        "tokens": text.written.tokens,
    }


def identities(export: Path | None, source: Path | None) -> dict[str, str]:
    """What a measurement says of the models it is of: {"export": model_digest, "float": the same, sampled}, of those
    that are given.
    """
    found = {"export": export and model_digest(export), "float": source and model_digest(source, whole=False)}
    return {name: digest for name, digest in found.items() if digest}


def source_of(directory: Path) -> str | None:
    """The identity of the float model that an export was made from; None where it is not recorded."""
    file = Path(directory) / RECIPE
    return read_json(file).get("source_sha256") if file.is_file() else None


def profile_of(directory: Path) -> str | None:
    """The profile that an export was made with; None where it is not recorded."""
    file = Path(directory) / RECIPE
    return read_json(file).get("config", {}).get("profile") if file.is_file() else None


def biases_corrected(directory: Path) -> bool:
    """Whether an export was made with bias_correction."""
    file = Path(directory) / RECIPE
    return file.is_file() and bool(read_json(file).get("config", {}).get("bias_correction"))


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def identity(calibrator) -> dict[str, str]:
    """Name -> value, as text, of all that the bytes of an export depend on: what a job that is resumed must have as it
    was.
    """
    made = recipe(calibrator)
    choices = {name: value for name, value in made["config"].items() if name not in NOT_IDENTITY}
    return {
        **{name: json.dumps(value) for name, value in choices.items()},
        **{name: json.dumps(made[name]) for name in ("export_dtype", "encoder", "calibration_sha256")},
        **computed_by(calibrator),
    }


def computed_by(calibrator) -> dict[str, str]:
    """Name -> value, as text, of what computes: versions, device, dtype, and the source's files."""
    import torch
    import transformers

    return {
        "version": json.dumps(VERSION),
        "torch": json.dumps(torch.__version__),
        "transformers": json.dumps(transformers.__version__),
        "compute_dtype": json.dumps(str(calibrator.compute_dtype).removeprefix("torch.")),
        "device": calibrator.device,
        **describe_all(calibrator.checkpoint.files),
    }


def settings(config: QuantConfig) -> dict:
    """The quantization_config block of --mindie_format: the keys that MindIE's examples have, with the settings that
    were used.
    """
    return {
        "group_size": 0,
        "act_method": config.act_method,
        "anti_method": config.anti_method,
        "is_lowbit": False,
        "mm_tensor": False,
        "w_sym": True,
        "open_outlier": True,
        "is_dynamic": False,
        "w_bit": config.w_bit,
        "a_bit": config.a_bit,
        "dev_type": config.dev_type or "npu",
    }
