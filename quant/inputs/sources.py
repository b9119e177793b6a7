"""What a user has for calibration -> a list of checked samples.

    folder    its images, those of folders inside, too; a calibration.jsonl or metadata.jsonl in it says which, and more
    .jsonl    an object a line
    .json     an array of objects; .tsv, OCRBench's
    .txt      passages, with empty lines between them
What counts of an object is said in fields.py.

Images are read and decoded in full before any work starts, and the first frame of each video: a broken file is found in
the first seconds, not in the last hour. What is of no use is named and skipped; a disk that fails ends it. A sample's
identity is its content (sample.py): samples are sorted by key, and the choice of `num_samples` ranks them by
sha256(seed:key), so neither the order of files nor their names can change a result.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import QuantError, UsageError
from . import video
from .fields import KNOWN, fields_of
from .images import SUFFIXES, ReadError, decode_image, located, read_bytes
from .rows import FORMATS, Rows, decoded, image_of, read_rows
from .sample import Picture, Sample, key_of, passage

LISTS = ("calibration.jsonl", "metadata.jsonl")  # in a folder: what to take of it
SHOWN = 10  # skipped samples that are named; the others are counted

Prompt = str | tuple[str, ...]


@dataclass
class Loaded:
    """samples: those with images or videos, sorted by key; texts: those of text alone, in the order in which they are
    to be taken; notices: lines for the user: what was skipped and why, how many of how many count; skipped: how many.
    """

    samples: list[Sample] = field(default_factory=list)
    texts: list[Sample] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    skipped: int = 0


def load_samples(
    source: Path,
    prompt: Prompt,
    num_samples: int | None,
    seed: int,
    *,
    pictures_only: bool = False,
    root: Path | None = None,
    strict: bool = False,
) -> Loaded:
    """Read a folder or a file, as at the top of this file.

    `prompt` is asked of an image that brings none of its own; of several, the image's content chooses one.
    `num_samples` (None: all) picks as many of the samples with images; pictures_only: of a folder's list, take the
    images alone. root: images must not lie outside of this folder. strict: stop at what would be skipped. Raises
    UsageError: no such source, nothing usable in it, a file that cannot be read on (with file:line); ReadError.
    """
    source, reader = Path(source), _Reader(prompt, None if root is None else Path(root).resolve(), strict)
    if num_samples is not None and num_samples < 1:
        raise UsageError(f"num_samples is {num_samples}: it must be at least 1")
    if os.path.isdir(source):
        list_ = next((source / name for name in LISTS if (source / name).is_file()), None)
        if list_ is None:
            reader.folder(source)
        else:
            alone = pictures_only and list_.name == LISTS[0]
            what = "the images, and nothing else, of" if alone else "what is in"
            reader.notices.append(f"{source}: takes {what} its {list_.name}")
            reader.file(list_, images_alone=alone)
    elif os.path.isfile(source) and source.suffix.lower() in FORMATS:
        reader.file(source)
    elif os.path.exists(source):
        raise UsageError(
            f"{source}: calibration input is a folder of images or a {', '.join(FORMATS)} file, and this is neither"
        )
    else:
        raise UsageError(f"{source}: no such folder or {', '.join(FORMATS)} file")
    loaded = reader.done()
    if not loaded.samples and not loaded.texts:
        raise UsageError(f"{source}: no usable image (png, jpg, jpeg, webp or bmp){_reasons(loaded.notices)}")
    if num_samples is not None and loaded.samples:
        loaded.samples = _some(loaded, num_samples, seed)
    loaded.texts = ranked(loaded.texts, seed)
    return loaded


def load_texts(file: Path, seed: int, *, strict: bool = False) -> Loaded:
    """The samples of text alone in a .txt or in a file of rows, in an order that the seed and their content decide;
    others in it are left. Raises UsageError where there is none, and as load_samples does.
    """
    file, reader = Path(file), _Reader("", None, strict)
    if not file.is_file() or file.suffix.lower() not in (*FORMATS, ".txt"):
        raise UsageError(f"{file}: texts are read from a .txt, {', '.join(FORMATS)} file, and this is none")
    if file.suffix.lower() == ".txt":
        reader.paragraphs(file)
    else:
        reader.file(file, texts_alone=True)
    loaded = reader.done()
    if not loaded.texts:
        raise UsageError(f"{file}: no text{_reasons(loaded.notices)}")
    loaded.texts = ranked(loaded.texts, seed)
    return loaded


def ranked(samples: list[Sample], seed: int) -> list[Sample]:
    """The samples in an order that depends on the seed and each key alone."""
    return sorted(samples, key=lambda sample: _rank(sample.key, seed))


def choose(keys: list[str], count: int, seed: int) -> list[str]:
    """`count` of the keys, sorted: those first in an order that depends on the seed and each key alone."""
    return sorted(sorted(keys, key=lambda key: _rank(key, seed))[:count])


def _rank(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def _some(loaded: Loaded, num_samples: int, seed: int) -> list[Sample]:
    unique = {sample.key: sample for sample in loaded.samples}
    chosen = choose(list(unique), num_samples, seed)
    if len(chosen) < len(unique):
        loaded.notices.append(f"using {len(chosen)} of {len(unique)} images, chosen with seed {seed}")
    elif num_samples > len(chosen):
        loaded.notices.append(f"using all {len(chosen)} images: num_samples asks for {num_samples}")
    return [unique[key] for key in chosen]


class _Reader:
    """Collects the samples of a folder or file."""

    def __init__(self, prompt: Prompt, root: Path | None, strict: bool):
        self.prompt, self.root, self.strict = prompt, root, strict
        self.found: list[Sample] = []
        self.notices: list[str] = []
        self.unused: set[str] = set()
        self.skipped = 0

    def skip(self, what: str) -> None:
        """Raises UsageError where nothing may be skipped."""
        if self.strict:
            raise UsageError(f"{what}; without --strict it is skipped")
        self.skipped += 1
        if self.skipped <= SHOWN:
            self.notices.append(f"skipped {what}")

    def folder(self, folder: Path) -> None:
        """All images below a folder."""
        others: list[str] = []
        for path in _walk(folder):
            name = str(path.relative_to(folder))
            if path.suffix.lower() not in SUFFIXES:
                others.append(name)
                continue
            try:
                self._add([located(folder, name, self.root)], None, "", name)
            except ReadError:
                raise
            except QuantError as error:
                self.skip(str(error).removeprefix(f"{folder}/"))
        if others:
            more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
            self.notices.append(f"skipped what is no image by its name: {', '.join(others[:SHOWN])}{more}")

    def file(self, file: Path, *, images_alone: bool = False, texts_alone: bool = False) -> None:
        """The rows of a file. images_alone: without prompts and texts; texts_alone: those without images."""
        folder, embedded = file.parent.resolve(), file.suffix.lower() == ".tsv"
        for line, row in _rows(file):
            try:
                if isinstance(row, QuantError):
                    raise row
                self.unused |= set(row) - KNOWN
                where, images = f"{file.name}:{line}", list[Path | Picture]()
                fields = fields_of(row, embedded)
                if embedded:
                    images = [Picture(image_of(row), where)]
                else:
                    images += [located(folder, name, self.root) for name in fields.images]
                videos = [self._video(folder, name) for name in fields.videos]
                if (images or videos) and not texts_alone:
                    prompt, answer = (None, "") if images_alone else (fields.prompt, fields.answer)
                    self._add(images, prompt, answer, videos=videos)
                elif not images and not videos and not images_alone:
                    self._add([], fields.prompt, fields.answer, where)
            except ReadError:
                raise
            except QuantError as error:
                self.skip(f"{file}:{line}: " + str(error).removeprefix(f"{folder}/"))
        if self.unused:
            self.notices.append(f"{file.name}: not used: {', '.join(sorted(self.unused))}")

    def paragraphs(self, file: Path) -> None:
        """A plain text."""
        text = decoded(file, read_bytes(file).removeprefix(b"\xef\xbb\xbf")).replace("\r\n", "\n")
        gathered: list[str] = []
        for number, line in enumerate([*text.split("\n"), ""], 1):
            if line.strip():
                gathered.append(line)
            elif gathered:
                self.found.append(passage("\n".join(gathered), f"{file.name}:{number - len(gathered)}"))
                gathered = []

    def done(self) -> Loaded:
        """Each sample once."""
        unique: dict[str, Sample] = {}
        for sample in self.found:
            first = unique.setdefault(sample.key, sample)
            if first is not sample:
                what = (
                    f"the same {'image' if sample.images else 'video'} and prompt"
                    if sample.pictures
                    else "the same text"
                )
                self.notices.append(f"{sample.name}: {what} as {first.name}, counted once")
        if self.skipped > SHOWN:
            self.notices.append(f"skipped {self.skipped - SHOWN} more; {self.skipped} in all")
        samples = [unique[key] for key in sorted(unique)]
        return Loaded(
            [sample for sample in samples if sample.pictures],
            [sample for sample in samples if not sample.pictures],
            self.notices,
            self.skipped,
        )

    def _video(self, folder: Path, name: str) -> Path:
        """Raises QuantError for one that leaves the root, a folder of frames by one of them."""
        path = located(folder, name, self.root, "video")
        for part in video.parts(path) if path.is_dir() else []:
            located(path, part.name, self.root, "frame")
        return path

    def _add(
        self,
        images: list[Path | Picture],
        prompt: str | None,
        answer: str,
        name: str = "",
        videos: Sequence[Path] = (),
    ) -> None:
        """Raises QuantError for an image or a video that cannot be decoded."""
        data = [image.data if isinstance(image, Picture) else read_bytes(image) for image in images]
        for each, image in zip(data, images):
            decode_image(each, image)
        digests = [video.digest(path) for path in videos]
        for path in videos:
            video.check(path)
        if (images or videos) and prompt is None:
            several = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
            content = hashlib.sha256(data[0]).hexdigest() if data else digests[0]
            prompt = several[int(content, 16) % len(several)]
        name = name or ", ".join(shown.name for shown in (*images, *videos))
        key = key_of(data, prompt, answer, digests)
        self.found.append(Sample(tuple(images), prompt, answer, key, name, tuple(videos)))


def _rows(file: Path) -> Rows:
    """read_rows. Raises UsageError for a file that cannot be read; ReadError."""
    try:
        return read_rows(file)
    except (ReadError, UsageError):
        raise
    except QuantError as error:
        raise UsageError(str(error)) from None


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, hidden ones left out, links followed but not in a circle. Raises UsageError."""
    seen: set[Path] = set()

    def of(place: Path) -> Iterator[Path]:
        if (real := place.resolve()) in seen:
            return
        seen.add(real)
        try:
            entries = sorted(place.iterdir())
        except OSError as error:
            raise UsageError(f"{place}: cannot be read: {error.strerror}") from None
        for path in entries:
            if path.name.startswith("."):
                continue
            if path.is_dir():
                yield from of(path)
            else:
                yield path

    return of(folder)


def _reasons(notices: list[str]) -> str:
    shown = "; ".join(notices[:3])
    return f": {shown}" + (f"; and {len(notices) - 3} more" if len(notices) > 3 else "") if notices else ": it is empty"
