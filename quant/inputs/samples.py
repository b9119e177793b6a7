"""Calibration input, ready for the model: images, prompts, answers and passages through the checkpoint's processor, or
inputs that the caller prepared.

Samples are in canonical order, that of their content's hash, those with images first: nothing that follows depends on
file names or on the order of a list, and the first sample enters every tower.

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

from ..base.choices import CALIB_TEXT
from ..base.config import CALIB_IMAGES, MAX_SAMPLES, QuantConfig
from ..base.errors import QuantError, UsageError
from ..families.family import Family
from ..files.checkpoint import Checkpoint
from .encoder import BY_TOKEN, Encoder
from .images import ReadError
from .sample import Sample, passage
from .sources import LISTS, Loaded, load_samples, load_texts, ranked

IMAGE, PROMPT, ANSWER = range(3)  # what a token of the language model is; a passage is all ANSWER
PASSAGE_TOKENS = 512  # of one passage: many short ones cover more of a language than a long one
AT_ONCE = 256  # texts, of which no more are taken as a rule
SHORTEST = 16  # tokens that are left for which it is worth to go on


@dataclass
class CalibrationSet:
    """inputs: the model's keyword arguments per sample, batch [1, ...]; keys: sha256 hex of each sample's content,
    ascending, those without images last; names: of the images or texts, for the user; encoder: what made the inputs
    (Encoder.describe); notices: lines for the user.

    encode: sample number -> its inputs, where `inputs` lack the pixels; None where they are complete.
    starts: for each sample the position where the answer begins, T where there is none, 0 for a passage;
    image_token_id: the placeholder's number, or None where it is not known; skipped: samples of no use.
    """

    inputs: list[dict[str, Tensor]]
    keys: list[str]
    names: list[str]
    encoder: dict = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    encode: Callable[[int], dict[str, Tensor]] | None = None
    starts: list[int] = field(default_factory=list)
    image_token_id: int | None = None
    skipped: int = 0

    def counts(self) -> dict[str, int]:
        """How many tokens of each kind the language model sees: {"image", "prompt", "answer"}."""
        seen = torch.zeros(3, dtype=torch.int64)
        for number in range(len(self.inputs)):
            seen += torch.bincount(self.kinds(number).long(), minlength=3)
        return dict(zip(("image", "prompt", "answer"), seen.tolist()))

    @property
    def texts(self) -> int:
        """How many samples have no image."""
        return sum(not self.has_image(number) for number in range(len(self.inputs)))

    def has_image(self, number: int) -> bool:
        """Whether the language model sees an image in the sample."""
        return bool((self.kinds(number) == IMAGE).any())

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

    def asked(self, number: int) -> dict[str, Tensor]:
        """The inputs of a sample up to where its answer begins; of a passage, which answers nothing, all."""
        inputs, start = self.inputs[number], self.starts[number] if number < len(self.starts) else 0
        cut = {name: tensor[:, :start] for name, tensor in inputs.items() if name in BY_TOKEN and start}
        return {**inputs, **cut}

    def unanswered(self, number: int) -> bool:
        """Whether a sample ends where an answer would begin, as far as that is known."""
        return number >= len(self.starts) or self.starts[number] == self.inputs[number]["input_ids"].shape[1]

    def whole(self, number: int) -> dict[str, Tensor]:
        """All inputs of a sample. Raises QuantError when its image has changed since, or cannot be read any more."""
        return self.encode(number) if self.encode else self.inputs[number]

    @property
    def digest(self) -> str:
        """sha256 over the keys: what was calibrated on."""
        return hashlib.sha256("".join(self.keys).encode()).hexdigest()


def prepare(
    data,
    checkpoint: Checkpoint,
    family: Family,
    config: QuantConfig,
    shared: bool = False,
    *,
    write: Callable[[list[Sample], Encoder], list[Sample]] | None = None,
) -> CalibrationSet:
    """data: what load_samples reads, None for the photographs shipped here, or a list of the model's inputs (dicts of
    tensors). shared: several processes take a part of the samples each; the pixels are left to whole(). write: called
    with the samples that have images, answers the samples to take in the place of all.

    What config.calib_text adds is text alone, passages or questions with answers. Of all such, at most
    config.text_tokens tokens are taken: those of `data` first, in an order that seed and content decide, a passage cut
    at PASSAGE_TOKENS. Raises UsageError: nothing that can be used, or with config.strict anything that cannot.
    """
    if isinstance(data, list):
        return _from_inputs(data, family.processing.image_token_id(checkpoint.config))
    loaded = load_samples(
        Path(data or CALIB_IMAGES),
        config.prompt or family.prompt,
        config.num_samples,
        config.seed,
        pictures_only=config.calib_text == "none",
        root=config.calib_root,
        strict=config.strict,
    )
    if config.num_samples is None and len(loaded.samples) > MAX_SAMPLES:
        loaded.notices.append(
            f"using {MAX_SAMPLES} of {len(loaded.samples)} images, chosen with seed {config.seed}; --num_samples takes"
            " more"
        )
        loaded.samples = sorted(ranked(loaded.samples, config.seed)[:MAX_SAMPLES], key=lambda sample: sample.key)
    if config.calib_text != "none":
        file = _text_file(config.calib_text)
        added, known = load_texts(file, config.seed, strict=config.strict), {sample.key for sample in loaded.texts}
        loaded.texts += [sample for sample in added.texts if sample.key not in known]
        loaded.notices += added.notices
        loaded.skipped += added.skipped
    encoder = Encoder(
        checkpoint.dir,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
        trust_remote_code=config.trust_remote_code,
    )
    return _encoded(loaded, encoder, config, shared, write)


def _text_file(calib_text: str) -> Path:
    """Raises UsageError for what is neither a name nor a file."""
    if calib_text == "shipped":
        return CALIB_IMAGES / LISTS[0]
    if not Path(calib_text).is_file():
        raise UsageError(f"calib_text {calib_text}: is no file, and none of {', '.join(CALIB_TEXT)}")
    return Path(calib_text)


def _encoded(loaded: Loaded, encoder: Encoder, config: QuantConfig, shared: bool, write) -> CalibrationSet:
    """Everything through the encoder; what it refuses is named and skipped."""
    taken: list[tuple[Sample, dict[str, Tensor]]] = []

    def take(sample: Sample) -> None:
        try:
            inputs = encoder.encode_sample(sample)
        except ReadError:
            raise
        except QuantError as error:
            if config.strict:
                raise UsageError(f"{error}; without --strict it is skipped") from None
            loaded.skipped += 1
            loaded.notices.append(f"skipped {error}")
            return
        taken.append((sample, _without_pixels(inputs) if shared else inputs))

    samples, texts = loaded.samples, loaded.texts
    if write is not None:
        written = write(samples, encoder)
        samples, texts = ([each for each in written if bool(each.images) is some] for some in (True, False))
    encoder.read([*samples, *texts[:AT_ONCE]])
    for sample in sorted(samples, key=lambda sample: sample.key):
        take(sample)
    if write is None:
        texts = _within(texts, encoder, config.text_tokens, loaded.notices)
    for sample in sorted(texts, key=lambda sample: sample.key):
        take(sample)
    if not taken:
        raise UsageError(f"none of the {loaded.skipped} samples can be used: {'; '.join(loaded.notices[-3:])}")
    kept = [sample for sample, _ in taken]
    return CalibrationSet(
        [inputs for _, inputs in taken],
        [sample.key for sample in kept],
        [sample.name for sample in kept],
        encoder.describe(),
        loaded.notices,
        (lambda number: encoder.encode_sample(kept[number])) if shared else None,
        [encoder.answer_start(sample, inputs) for sample, inputs in taken],
        encoder.image_token_id,
        loaded.skipped,
    )


def _within(texts: list[Sample], encoder: Encoder, most: int, notices: list[str]) -> list[Sample]:
    """The first of the texts that have at most `most` tokens together; a passage that is too long is cut."""
    taken: list[Sample] = []
    left, cut = most, 0
    for sample in texts:
        if left < min(SHORTEST, most):
            notices.append(f"using {len(taken)} of {len(texts)} texts: --text_tokens {most} takes no more{_cut(cut)}")
            return taken
        try:
            ids = encoder.encode_sample(sample)["input_ids"][0]
        except QuantError:  # said where it is taken
            taken.append(sample)
            continue
        if sample.is_passage and len(ids) > (longest := min(left, PASSAGE_TOKENS)):
            own = encoder.passage_ids(sample.answer)
            sample, cut = passage(tuple(own[: longest - len(ids) + len(own)]), sample.name), cut + 1
            ids = ids[:longest]
        if len(ids) <= left and sample.answer:
            taken.append(sample)
            left -= len(ids)
    if cut:
        notices.append(f"using all {len(texts)} texts{_cut(cut)}")
    return taken


def _cut(count: int) -> str:
    return f", {count} of them cut" if count else ""


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
