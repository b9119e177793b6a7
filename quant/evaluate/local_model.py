"""A model that answers questions here: the float checkpoint, or an export as a server would compute it (runtime.py)."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.config import TEXT_FILE
from ..base.errors import QuantError
from ..export.recipe import RECIPE, RUN_LOG
from .endpoint import Unanswered
from .questions import Question

if TYPE_CHECKING:  # a run against servers alone does without torch
    from torch import nn

    from ..inputs.encoder import Encoder

BULKY = {".safetensors", ".bin", ".pt", ".pth"}


class LocalModel:
    """A model of this machine, loaded with the first question.

    directory: a float checkpoint, or with int8=True an export, which computes as the server would. max_pixels: largest
    area an image is resized to. Raises UsageError or QuantError as Checkpoint and reader.read do.
    """

    def __init__(
        self,
        directory: str | Path,
        int8: bool,
        *,
        max_new_tokens: int,
        max_pixels: int | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ):
        from ..export import reader
        from ..files.checkpoint import Checkpoint
        from ..model.device import pick_device

        source: reader.Export | Checkpoint = reader.read(directory) if int8 else Checkpoint(directory)
        self.directory, self.int8, self.max_new_tokens = source.dir, int8, max_new_tokens
        self.max_pixels, self.device, self.trust_remote_code = max_pixels, pick_device(device), trust_remote_code
        self.loaded: tuple[nn.Module, Encoder] | None = None

    def describe(self) -> dict:
        """What answers depend on, to be compared with other runs'."""
        import torch
        import transformers

        return {
            "arithmetic": "int8" if self.int8 else "float",
            "files": files_digest(self.directory),
            "max_new_tokens": self.max_new_tokens,
            "max_pixels": self.max_pixels,
            "device": self.device,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def answer(self, question: Question) -> str:
        """The greedy answer. Raises Unanswered where the processor refuses the image or the prompt."""
        from ..verify import runtime

        if self.loaded is None:
            load = runtime.load if self.int8 else runtime.load_float
            self.loaded = load(
                self.directory, self.device, max_pixels=self.max_pixels, trust_remote_code=self.trust_remote_code
            )
        model, encoder = self.loaded
        try:
            inputs = encoder(question.open(), question.prompt)
        except QuantError as error:
            raise Unanswered(f"{question.where}: {error}") from None
        return encoder.decode(runtime.greedy(model, inputs, self.max_new_tokens))


def files_digest(directory: Path) -> str:
    """sha256, in hex, over a model's files: weights by name, size and time, all others by their content, but for the
    records that no model reads.
    """
    digest = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if file.is_file() and file.name not in (RECIPE, RUN_LOG, TEXT_FILE):
            state = file.stat()
            known = f"{state.st_size} {state.st_mtime_ns}".encode() if file.suffix in BULKY else file.read_bytes()
            digest.update(f"{file.name}\0".encode() + hashlib.sha256(known).digest())
    return digest.hexdigest()
