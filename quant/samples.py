"""Calibration input, ready for the model: images with prompts through the checkpoint's processor, or inputs that the caller prepared.

Samples are in canonical order, that of their content's hash: nothing that follows depends on file names or on the order of a list.
"""
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from .checkpoint import Checkpoint
from .config import MAX_SAMPLES, QuantConfig
from .encode import Encoder
from .errors import UsageError
from .family import Family
from .images import choose, load_samples

CALIB_IMAGES = Path(__file__).resolve().parent.parent / "calibImages"


@dataclass
class CalibrationSet:
    """inputs: the model's keyword arguments per sample, batch 1; keys: sha256 hex of each sample's content, ascending."""

    inputs: list[dict[str, Tensor]]
    keys: list[str]
    names: list[str]
    encoder: dict = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """sha256 over the keys: what was calibrated on."""
        return hashlib.sha256("".join(self.keys).encode()).hexdigest()


def prepare(data, checkpoint: Checkpoint, family: Family, config: QuantConfig) -> CalibrationSet:
    """data: a folder of images, a JSONL, None for the photographs shipped here, or a list of the model's inputs (dicts of tensors)."""
    if isinstance(data, list):
        return _from_inputs(data)
    samples, notices = load_samples(Path(data or CALIB_IMAGES), config.prompt or family.prompt, config.num_samples, config.seed)
    if config.num_samples is None and len(samples) > MAX_SAMPLES:
        notices.append(f"using {MAX_SAMPLES} of {len(samples)} images, chosen with seed {config.seed}; --num_samples takes more")
        chosen = set(choose([sample.key for sample in samples], MAX_SAMPLES, config.seed))
        samples = [sample for sample in samples if sample.key in chosen]
    encoder = Encoder(checkpoint.dir, min_pixels=config.min_pixels, max_pixels=config.max_pixels, trust_remote_code=config.trust_remote_code)
    inputs = [encoder.encode_sample(sample) for sample in samples]
    return CalibrationSet(inputs, [sample.key for sample in samples], [sample.image.name for sample in samples], encoder.describe(), notices)


def _from_inputs(data: list) -> CalibrationSet:
    if not data or not all(isinstance(inputs, dict) and "input_ids" in inputs for inputs in data):
        raise UsageError("calib_data is a list, but not of the model's inputs: every entry must be a dict with input_ids and the image's tensors")
    keyed = sorted(((_key(inputs), inputs) for inputs in data), key=lambda pair: pair[0])
    return CalibrationSet([inputs for _, inputs in keyed], [key for key, _ in keyed], [f"input {number}" for number in range(len(keyed))])


def _key(inputs: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(inputs):
        tensor = inputs[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()
