"""What is put into a model once: pictures, videos, a prompt and an answer, or a passage of text alone; its identity.

    key = sha256(image bytes + NUL + prompt)                                    one image, a prompt, no answer
        = sha256(JSON of the sha256 of each image, the prompt and the answer)   everything else
        = the same with the sha256 of each video (video.py: digest) behind      with videos
The second cannot be the first of another sample: no image's bytes begin like JSON.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import QuantError


@dataclass(frozen=True)
class Picture:
    """An image that has no file of its own. name: what messages call it."""

    data: bytes = field(repr=False)
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Sample:
    """One input of the model. `key` depends on the content of the images, the videos, the prompt and the answer only.

    images: none, one, or several of one prompt; videos, files or folders of frames, are shown behind them. prompt: what
    is asked, in a turn of the chat template; None: a passage, which is `answer` without any template, with what the
    tokenizer itself puts in front of a text. answer: what follows the prompt, "" for nothing; token ids where a model
    wrote it, so that nothing is tokenized anew. name: for the user.
    """

    images: tuple[Path | Picture, ...]
    prompt: str | None
    answer: str | tuple[int, ...]
    key: str
    name: str = field(default="", compare=False)
    videos: tuple[Path, ...] = ()

    @property
    def pictures(self) -> tuple[Path | Picture, ...]:
        """The images and videos; none for a sample of text alone."""
        return self.images + self.videos

    @property
    def is_passage(self) -> bool:
        """Whether it is text without a prompt."""
        return self.prompt is None


def key_of(
    images: Sequence[bytes], prompt: str | None, answer: str | tuple[int, ...] = "", videos: Sequence[str] = ()
) -> str:
    """sha256, in hex, as at the top of this file. videos: the digest of each. Raises QuantError for half a surrogate
    pair, which is no text.
    """
    for name, text in (("prompt", prompt), ("answer", answer)):
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise QuantError(f'"{name}" holds half a surrogate pair, which is no text') from None
    if len(images) == 1 and prompt is not None and not answer and not videos:
        return hashlib.sha256(images[0] + b"\0" + prompt.encode()).hexdigest()
    digests = [hashlib.sha256(data).hexdigest() for data in images]
    content = [digests, prompt, answer, *([list(videos)] if videos else [])]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def passage(text: str | tuple[int, ...], name: str) -> Sample:
    """A sample of text alone: the text, or the token ids of one that a model wrote."""
    return Sample((), None, text, key_of((), None, text), name)
