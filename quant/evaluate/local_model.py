"""A model that answers questions here: the float checkpoint, or an export as a server would compute it (runtime.py)."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..base.config import MAX_FRAMES
from ..base.errors import QuantError
from ..files.fingerprints import model_digest
from .endpoint import Unanswered
from .questions import Question

if TYPE_CHECKING:  # a run against servers alone does without torch
    from torch import Tensor, nn

    from ..inputs.encoder import Encoder


class LocalModel:
    """A model of this machine, loaded with the first question.

    directory: a float checkpoint, or with int8=True an export, which computes as the server would. max_pixels: largest
    area an image is resized to; fps, max_frames: how videos are sampled; batch_size: questions at a time
    (generation.py).

    Raises UsageError or QuantError as Checkpoint and reader.read do.
    """

    def __init__(
        self,
        directory: str | Path,
        int8: bool,
        *,
        max_new_tokens: int,
        batch_size: int = 1,
        max_pixels: int | None = None,
        fps: float | None = None,
        max_frames: int | None = MAX_FRAMES,
        device: str | None = None,
        trust_remote_code: bool = False,
    ):
        from ..export import reader
        from ..files.checkpoint import Checkpoint
        from ..model.device import pick_device

        source: reader.Export | Checkpoint = reader.read(directory) if int8 else Checkpoint(directory)
        self.directory, self.int8, self.max_new_tokens = source.dir, int8, max_new_tokens
        self.batch_size = batch_size
        self.max_pixels, self.device, self.trust_remote_code = max_pixels, pick_device(device), trust_remote_code
        self.sampling = {"fps": fps, "max_frames": max_frames}
        self.loaded: tuple[nn.Module, Encoder] | None = None

    def describe(self) -> dict:
        """What answers depend on, to be compared with other runs'. files: the model's identity (model_digest)."""
        import torch
        import transformers

        return {
            "arithmetic": "int8" if self.int8 else "float",
            "files": model_digest(self.directory, whole=self.int8),
            "max_new_tokens": self.max_new_tokens,
            "max_pixels": self.max_pixels,
            **({} if self.sampling == {"fps": None, "max_frames": MAX_FRAMES} else {"videos": self.sampling}),
            "device": self.device,
            **({"batch_size": self.batch_size} if self.batch_size > 1 else {}),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def answer(self, question: Question) -> str:
        """The greedy answer. Raises Unanswered where the processor refuses the image or the prompt."""
        (said,) = self.answers([question])
        if isinstance(said, Unanswered):
            raise said
        return said

    def answers(self, questions: list[Question]) -> list[str | Unanswered]:
        """The greedy answers, computed at once; an Unanswered where the processor refuses the image or the prompt.

        Raises torch's own error where the device's memory does not even suffice for one question at a time.
        """
        from ..verify import runtime

        if self.loaded is None:
            load = runtime.load if self.int8 else runtime.load_float
            self.loaded = load(
                self.directory,
                self.device,
                trust_remote_code=self.trust_remote_code,
                max_pixels=self.max_pixels,
                **self.sampling,
            )
        encoder, inputs, said = self.loaded[1], {}, dict[int, str | Unanswered]()
        for number, question in enumerate(questions):
            try:
                clips = [encoder.clip(path) for path in question.videos]
                inputs[number] = encoder(question.open(), question.prompt, clips=clips)
            except QuantError as error:
                said[number] = Unanswered(f"{question.where}: {error}")
        texts = map(encoder.decode, self._generate(list(inputs.values())))
        said.update(zip(inputs, texts))
        return [said[number] for number in range(len(questions))]

    def _generate(self, inputs: "list[dict[str, Tensor]]") -> "list[Tensor]":
        """Answers int64 [N] to inputs of batch 1. Half the batch at a time where memory does not suffice."""
        from ..model.device import is_out_of_memory
        from ..verify import generation

        assert self.loaded is not None
        model, encoder = self.loaded
        if len(inputs) < 2 or encoder.family.processing.alone:
            return [generation.greedy(model, one, self.max_new_tokens) for one in inputs]
        try:
            return generation.greedy_batch(model, inputs, self.max_new_tokens, encoder.padding_id)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        half = len(inputs) // 2
        return self._generate(inputs[:half]) + self._generate(inputs[half:])
