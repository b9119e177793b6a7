"""Calibration input, ready for the model: images with prompts through the checkpoint's processor, or inputs that the
caller prepared.

Samples are in canonical order, that of their content's hash: nothing that follows depends on file names or on the order
of a list.

The pixels are what takes memory: up to 24 bytes a pixel of the image, as float32 patches, next to which token ids are
nothing. Of several processes each encodes all samples, one after the other, to know how many tokens they have, keeps
all but the pixels, and encodes again those that are its own: its memory is that of its share and one sample more.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..base.config import CALIB_IMAGES, MAX_SAMPLES, QuantConfig
from ..base.errors import UsageError
from ..families.family import Family
from ..files.checkpoint import Checkpoint
from .encoder import Encoder
from .images import choose, load_samples

IMAGE, PROMPT, ANSWER = range(3)  # what a token of the language model is; a passage is all ANSWER


@dataclass
class CalibrationSet:
    """inputs: the model's keyword arguments per sample, batch [1, ...]; keys: sha256 hex of each sample's content,
    ascending; names: of the images, for the user; encoder: what made the inputs (Encoder.describe); notices: lines for
    the user.

    encode: sample number -> its inputs, where `inputs` lack the pixels; None where they are complete.
    starts: for each sample the position where the answer begins, T where there is none, 0 for a passage;
    image_token_id: the placeholder's number, or None where it is not known.
    """

    inputs: list[dict[str, Tensor]]
    keys: list[str]
    names: list[str]
    encoder: dict = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    encode: Callable[[int], dict[str, Tensor]] | None = None
    starts: list[int] = field(default_factory=list)
    image_token_id: int | None = None

    def kinds(self, number: int) -> Tensor:
        """What the language model's tokens of a sample are, in the order of input_ids: IMAGE, PROMPT or ANSWER, uint8
        [T]. Of inputs that the caller prepared it is not known where an answer begins: all text counts as PROMPT.
        """
        ids = self.inputs[number]["input_ids"][0]
        kinds = torch.full(ids.shape, PROMPT, dtype=torch.uint8)
        if number < len(self.starts):
            kinds[self.starts[number] :] = ANSWER
        if self.image_token_id is not None:
            kinds[ids == self.image_token_id] = IMAGE
        return kinds

    def whole(self, number: int) -> dict[str, Tensor]:
        """All inputs of a sample. Raises QuantError when its image has changed since, or cannot be read any more."""
        return self.encode(number) if self.encode else self.inputs[number]

    @property
    def digest(self) -> str:
        """sha256 over the keys: what was calibrated on."""
        return hashlib.sha256("".join(self.keys).encode()).hexdigest()


def prepare(data, checkpoint: Checkpoint, family: Family, config: QuantConfig, shared: bool = False) -> CalibrationSet:
    """data: a folder of images, a JSONL, None for the photographs shipped here, or a list of the model's inputs (dicts
    of tensors). shared: several processes take a part of the samples each; the pixels are left to whole().
    """
    if isinstance(data, list):
        return _from_inputs(data, family.processing.image_token_id(checkpoint.config))
    samples, notices = load_samples(
        Path(data or CALIB_IMAGES), config.prompt or family.prompt, config.num_samples, config.seed
    )
    if config.num_samples is None and len(samples) > MAX_SAMPLES:
        notices.append(
            f"using {MAX_SAMPLES} of {len(samples)} images, chosen with seed {config.seed}; --num_samples takes more"
        )
        chosen = set(choose([sample.key for sample in samples], MAX_SAMPLES, config.seed))
        samples = [sample for sample in samples if sample.key in chosen]
    encoder = Encoder(
        checkpoint.dir,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
        trust_remote_code=config.trust_remote_code,
    )
    inputs = [
        _without_pixels(encoder.encode_sample(sample)) if shared else encoder.encode_sample(sample)
        for sample in samples
    ]
    again = (lambda number: encoder.encode_sample(samples[number])) if shared else None
    return CalibrationSet(
        inputs,
        [sample.key for sample in samples],
        [sample.name for sample in samples],
        encoder.describe(),
        notices,
        again,
        [encoder.answer_start(sample, made) for sample, made in zip(samples, inputs)],
        encoder.image_token_id,
    )


def _without_pixels(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in inputs.items() if not tensor.is_floating_point()}


def _from_inputs(data: list, image_token_id: int) -> CalibrationSet:
    if not data or not all(isinstance(inputs, dict) and "input_ids" in inputs for inputs in data):
        raise UsageError(
            "calib_data is a list, but not of the model's inputs: every entry must be a dict with input_ids and the"
            " image's tensors"
        )
    keyed = sorted(((_key(inputs), inputs) for inputs in data), key=lambda pair: pair[0])
    return CalibrationSet(
        [inputs for _, inputs in keyed],
        [key for key, _ in keyed],
        [f"input {number}" for number in range(len(keyed))],
        image_token_id=image_token_id,
    )


def _key(inputs: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(inputs):
        tensor = inputs[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()
