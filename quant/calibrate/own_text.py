"""--calib_text self: before the first block, the float model answers every picture that has no answer yet, and writes
passages (sampling.py). It is in memory as a whole for that, and gone before calibration begins.

What it wrote is kept in the job's directory, so a job that is resumed does not write anew; by several processes the
first writes for all. Where the model does not fit, that is said, and the shipped text is used.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..base.config import TEXT_FILE, QuantConfig
from ..base.console import Reporter, duration, size
from ..base.errors import QuantError
from ..export.recipe import computed_by
from ..families import family_of
from ..files.checkpoint import Checkpoint
from ..inputs.encoder import Encoder
from ..inputs.images import ReadError
from ..inputs.sample import Sample
from ..inputs.samples import Write
from ..inputs.written import Written, parse_written, read_written
from ..model.device import compute_dtype, free_cache, free_memory, is_out_of_memory
from ..model.whole import MARGIN, needed_memory, room_for, whole_model
from .launch import stop_asked
from .sampling import ANSWER, AT_ONCE, Writer
from .work import Work

TOKENS = 2048  # of a sample with its answer, for the estimate of what the keys and values take


@dataclass(frozen=True)
class OwnText:
    """What the model wrote, and the same as a file's content; or why it did not: `refused`."""

    written: Written = Written()
    lines: bytes = b""
    refused: str | None = None


def write_texts(
    checkpoint: Checkpoint,
    encoder: Encoder,
    samples: list[Sample],
    config: QuantConfig,
    device: str,
    tokens: int,
    reporter: Reporter,
    stop=lambda: False,
) -> OwnText:
    """Answers to the samples that have none, and passages of `tokens` tokens in all, by the float model on `device`.

    stop: asked at every token. Raises QuantError for a model that cannot be loaded or whose logits are not finite,
    KeyboardInterrupt when it is to stop.
    """
    start, asked = time.perf_counter(), [sample for sample in samples if sample.pictures and not sample.answer]
    more, cards = _cache(checkpoint, device), None
    if refused := room_for(checkpoint, device, more):
        cards = _cards(device, more)
        refused = room_for(checkpoint, device, more, spread=True)
    if refused:
        return OwnText(refused=refused)
    where = f" over {len(cards)} cards" if cards else ""
    reporter.line(
        f"text     the model itself writes {len(asked)} answers and {tokens} tokens of passages; it takes"
        f" {size(needed_memory(checkpoint, device) + more)}{where}"
    )

    def write() -> Written:
        with reporter.progress("own text", len(asked) * ANSWER + tokens) as step:

            def advance() -> None:
                step()
                if stop():
                    raise KeyboardInterrupt

            model = whole_model(checkpoint, device, config.trust_remote_code, cards=cards).model
            writer = Writer(model, encoder, config.seed)
            answers = writer.answers({sample.key: partial(_encoded, encoder, sample) for sample in asked}, advance)
            return Written(answers, tuple(writer.passages(tokens, advance)))

    try:
        written = write()
    except RuntimeError as err:
        if not is_out_of_memory(err):
            raise
        return OwnText(refused=f"out of memory while it wrote: {str(err).splitlines()[0]}")
    finally:
        free_cache(device)
    reporter.line(
        f"text     {len(written.passages)} passages, {len(written.answers)} answers, {written.tokens} tokens by the"
        f" model itself, {duration(time.perf_counter() - start)}"
    )
    return OwnText(written, written.lines(encoder.raw))


def _encoded(encoder: Encoder, sample: Sample) -> dict | None:
    """None for what prepare() will name and skip. Raises ReadError."""
    try:
        return encoder.encode_sample(sample)
    except ReadError:
        raise
    except QuantError:
        return None


def _cache(checkpoint: Checkpoint, device: str) -> int:
    """Bytes of the keys and values of what is written at once."""
    config = checkpoint.config
    language = family_of(config, checkpoint.dir).tower("language")
    query_heads, heads = language.heads(config)
    channels = heads * language.width(config) // query_heads
    itemsize = compute_dtype(checkpoint.dtype, device).itemsize
    return 2 * language.used(config) * channels * itemsize * AT_ONCE * TOKENS


def _cards(device: str, more: int) -> dict[int, int] | None:
    """Number of a card -> bytes of weights that it may get, where there are several."""
    free = free_memory(device)
    return {card: round((room - more / len(free)) / MARGIN) for card, room in free.items()} if len(free) > 1 else None


def writer_of(calibrator, work: Work | None, finished: Path | None) -> Write | None:
    """The `write` of prepare(), where a Calibrator is to use the model's own text.

    It is what is known already, what the job keeps or a finished export has, or else written now, and kept. Several
    ranks: all of them ask, and the first writes. Raises UsageError where the job has committed blocks with text of
    other samples or choices, and as write_texts does.
    """

    def write(samples: list[Sample], encoder: Encoder, tokens: int) -> list[Sample] | None:
        if finished:
            calibrator.own_text = _finished_text(finished, encoder)
        if calibrator.own_text is None:
            text = _kept_or_new(calibrator, work, samples, encoder, tokens) if calibrator.ranks.rank == 0 else None
            calibrator.own_text = calibrator.ranks.gather(text)[0]
        if not (refused := calibrator.own_text.refused):
            return calibrator.own_text.written.put_into(samples)
        if not finished:
            calibrator.reporter.line(f"text     the shipped text, not the model's own: {refused}")
        return None

    return write if calibrator.config.calib_text == "self" else None


def _kept_or_new(calibrator, work: Work | None, samples: list[Sample], encoder: Encoder, tokens: int) -> OwnText:
    made_of = {
        "samples": hashlib.sha256("".join(sample.key for sample in samples).encode()).hexdigest(),
        **computed_by(calibrator),
        "encoder": json.dumps(encoder.describe()),
        "text_tokens": str(tokens),
        "seed": str(calibrator.config.seed),
    }
    if work and (kept := work.kept_text(made_of)):
        lines = kept["lines"].encode()
        written = parse_written(lines, work.dir / TEXT_FILE, encoder.raw)
        if not kept["refused"]:
            calibrator.reporter.line(f"text     {written.tokens} tokens are kept, which the model wrote for this job")
        return OwnText(written, lines, kept["refused"])
    text = write_texts(
        calibrator.checkpoint,
        encoder,
        samples,
        calibrator.config,
        calibrator.device,
        tokens,
        calibrator.reporter,
        lambda: bool(work and work.stop) or stop_asked(),
    )
    if work:
        work.keep_text(made_of, {"lines": text.lines.decode(), "refused": text.refused})
    return text


def _finished_text(directory: Path, encoder: Encoder) -> OwnText:
    """Raises UsageError for a damaged file."""
    file = directory / TEXT_FILE
    if not file.is_file():
        return OwnText(refused=f"{directory} was made without")
    return OwnText(read_written(file, encoder.raw), file.read_bytes())
