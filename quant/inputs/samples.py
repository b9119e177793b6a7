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
from contextlib import suppress
from functools import partial
from pathlib import Path

from torch import Tensor

from ..base.choices import CALIB_TEXT
from ..base.config import CALIB_IMAGES, HELD_OUT, MAX_SAMPLES, QuantConfig
from ..base.errors import QuantError, UsageError
from ..families.family import Family
from ..files.checkpoint import Checkpoint
from .calibration_set import CalibrationSet
from .encoder import Encoder
from .images import ReadError
from .sample import Sample, passage
from .sources import LISTS, Loaded, load_samples, load_texts, ranked
from .written import answered, is_written, read_written

Write = Callable[[list[Sample], Encoder, int], list[Sample] | None]  # write() of prepare
PASSAGE_TOKENS = 512  # of one passage: many short ones cover more of a language than a long one
AT_ONCE = 256  # texts, of which no more are taken as a rule
HELD_OUT_TOKENS = 400  # of the text by which each block is measured on what calibration did not see
SHORTEST = 16  # tokens that are left for which it is worth to go on


def prepare(
    data,
    checkpoint: Checkpoint,
    family: Family,
    config: QuantConfig,
    shared: bool = False,
    *,
    write: Write | None = None,
    apart: bool = False,
) -> CalibrationSet:
    """data: what load_samples reads, None for the photographs shipped here, or a list of the model's inputs (dicts of
    tensors). shared: several processes take a part of the samples each; the pixels are left to whole(). write: called
    with the samples that have images, the encoder and how many tokens of text alone are to be written; answers the
    samples with answers, and what was written, or None where the shipped text is to be used.

    What config.calib_text adds is text alone, passages or questions with answers. Of all such, at most
    config.text_tokens tokens are taken: those of `data` first, in an order that seed and content decide, a passage cut
    at PASSAGE_TOKENS. apart: with samples held out beside them.
    Raises UsageError: nothing that can be used, or with config.strict anything that cannot.
    """
    if isinstance(data, list):
        processing = family.processing
        video_token_id = processing.video.token_id(checkpoint.config) if processing.video else None
        return _from_inputs(data, processing.image_token_id(checkpoint.config), video_token_id)
    source = Path(data or CALIB_IMAGES)
    loaded = load_samples(
        source,
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
    encoder = Encoder(
        checkpoint.dir,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
        fps=config.fps,
        max_frames=config.max_frames,
        trust_remote_code=config.trust_remote_code,
    )
    if config.calib_text not in CALIB_TEXT and is_written(Path(config.calib_text)):
        write = partial(_from_file, Path(config.calib_text), loaded.notices)
    if write is None or not _written(write, source, loaded, encoder, config.text_tokens):
        if config.calib_text != "none":
            file = _text_file(config.calib_text)
            added, known = load_texts(file, config.seed, strict=config.strict), {sample.key for sample in loaded.texts}
            loaded.texts += [sample for sample in added.texts if sample.key not in known]
            loaded.notices += added.notices
            loaded.skipped += added.skipped
        encoder.read([*loaded.samples, *loaded.texts[:AT_ONCE]])
        loaded.texts, _ = _within(loaded.texts, encoder, config.text_tokens, loaded.notices)
    found = _encoded(loaded, encoder, config, shared)
    if apart:
        found.held_out = held_out(encoder, config.seed)
    return found


def held_out(encoder: Encoder, seed: int) -> list[dict[str, Tensor]]:
    """The inputs, [1, ...], of the first picture, and of HELD_OUT_TOKENS tokens of text, of what is shipped apart from
    calibration; what the checkpoint's processor refuses is left out.
    """
    loaded, found = load_samples(HELD_OUT, "", None, seed), []
    texts, _ = _within(loaded.texts, encoder, HELD_OUT_TOKENS, [])
    for sample in [*loaded.samples[:1], *texts]:
        with suppress(QuantError):
            found.append(encoder.encode_sample(sample))
    return found


def _written(write: Write, source: Path, loaded: Loaded, encoder: Encoder, most: int) -> bool:
    """Put into `loaded` what the model writes or has written, behind the user's own texts; False where it has not.
    source: of what is loaded; the answers and texts that are shipped with the photographs give way.
    """
    notices: list[str] = []
    shipped = source.resolve() in (CALIB_IMAGES, CALIB_IMAGES / LISTS[0])
    samples = [answered(sample, "") for sample in loaded.samples] if shipped else loaded.samples
    encoder.read([*samples, *loaded.texts[:AT_ONCE]])
    texts, left = _within([] if shipped else loaded.texts, encoder, most, notices)
    if (written := write(samples, encoder, left)) is None:
        return False
    loaded.samples = [sample for sample in written if sample.pictures]
    loaded.texts = texts + [sample for sample in written if not sample.pictures]
    loaded.notices += notices
    return True


def _from_file(file: Path, notices: list[str], samples: list[Sample], encoder: Encoder, left: int) -> list[Sample]:
    """What another run's model has written, all of it."""
    written = read_written(file, encoder.raw)
    if others := len(written.answers.keys() - {sample.key for sample in samples}):
        notices.append(f"{file.name}: {others} of {len(written.answers)} answers are to other images or prompts")
    return written.put_into(samples)


def _text_file(calib_text: str) -> Path:
    """Raises UsageError for what is neither a name nor a file."""
    if calib_text in CALIB_TEXT:
        return CALIB_IMAGES / LISTS[0]
    if not Path(calib_text).is_file():
        raise UsageError(f"calib_text {calib_text}: is no file, and none of {', '.join(CALIB_TEXT)}")
    return Path(calib_text)


def _encoded(loaded: Loaded, encoder: Encoder, config: QuantConfig, shared: bool) -> CalibrationSet:
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

    for sample in sorted(loaded.samples, key=lambda sample: sample.key):
        take(sample)
    for sample in sorted(loaded.texts, key=lambda sample: sample.key):
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
        video_token_id=encoder.video_token_id,
    )


def _within(texts: list[Sample], encoder: Encoder, most: int, notices: list[str]) -> tuple[list[Sample], int]:
    """The first of the texts that have at most `most` tokens together, and how many of these are left; a passage that
    is too long is cut.
    """
    taken: list[Sample] = []
    left, cut = most, 0
    for sample in texts:
        if left < min(SHORTEST, most):
            notices.append(f"using {len(taken)} of {len(texts)} texts: --text_tokens {most} takes no more{_cut(cut)}")
            return taken, left
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
    return taken, left


def _cut(count: int) -> str:
    return f", {count} of them cut" if count else ""


def _without_pixels(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in inputs.items() if not tensor.is_floating_point()}


def _from_inputs(data: list, image_token_id: int, video_token_id: int | None) -> CalibrationSet:
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
        video_token_id=video_token_id,
    )


def _key(inputs: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(inputs):
        tensor = inputs[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()
