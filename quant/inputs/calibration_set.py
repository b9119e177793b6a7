"""The samples of a calibration, as a model takes them, and what is known of their tokens."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .encoder import BY_TOKEN

IMAGE, PROMPT, ANSWER = range(3)  # what a token of the language model is (a video's: IMAGE); a passage is all ANSWER


@dataclass
class CalibrationSet:
    """inputs: the model's keyword arguments per sample, batch [1, ...]; keys: sha256 hex of each sample's content,
    ascending, those without images last; names: of the images or texts, for the user; encoder: what made the inputs
    (Encoder.describe); notices: lines for the user.

    encode: sample number -> its inputs, where `inputs` lack the pixels; None where they are complete.
    starts: for each sample the position where the answer begins, T where there is none, 0 for a passage;
    image_token_id, video_token_id: the placeholders' numbers, or None where they are not known; both count as IMAGE;
    skipped: samples of no use; held_out: the inputs of samples that nothing is fitted to, shipped apart (none where the
    caller prepared the inputs).
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
    held_out: list[dict[str, Tensor]] = field(default_factory=list)
    video_token_id: int | None = None

    @property
    def different_words(self) -> int:
        """How many different tokens of text the language model sees."""
        seen = [inputs["input_ids"][0][self.kinds(number) != IMAGE] for number, inputs in enumerate(self.inputs)]
        return len(torch.cat(seen).unique())

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
        for token in (self.image_token_id, self.video_token_id):
            if token is not None:
                kinds[ids == token] = IMAGE
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
