"""Images, videos, a prompt and an answer, or a passage of text -> a model's inputs, as the checkpoint's own files have
it.

    text    chat template(images, videos, prompt)  ->  input_ids, attention_mask int64 [1,T]; where the model's class
                                                       wants them, mm_token_type_ids [1,T]: 1 of an image, 2 of a video
    images  RGB  ->  pixel_values float32, as the family's processor makes them: [patches, 3*2*14*14] or
                     [patches,3,14,14] with image_grid_thw [N,3] where images keep their proportions, [N,3,H,W] where
                     all get one size
    videos  files, GIFs, folders of frames  ->  sampled, as video_processor.py does: pixel_values_videos with
                     video_grid_thw [N,3] and, where the class wants it, second_per_grid_ts [N]; InternVL: pixel_values
    answer  its tokens behind those, where the server has what it generated

templates.py turns the prompt into text, processor.py images and text into tensors; what is particular to a family is
the `Processing` of its description. transformers is imported when an Encoder is made.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import QuantError
from ..families import family_of
from ..files.config_json import read_json
from . import processor_files
from .processor import Processor
from .reopen import reopen_images
from .sample import Sample
from .templates import ChatTemplate, user_turn
from .video_processor import Clip

if TYPE_CHECKING:
    import torch
    from PIL import Image

BY_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")  # inputs with a number for each token, [1, T]


class Encoder:
    """The processor of the checkpoint in `directory`: `encoder(images, prompt, answer)` gives the model's inputs.

    min_pixels, max_pixels: limits on the resized image's area instead of the checkpoint's own, where the family has
    limits. fps, max_frames: how videos are sampled, instead of the checkpoint's own.

    family, tokenizer: the checkpoint's. limits: (min_pixels, max_pixels) in force, or None. image_token_id: the number
    of the token that stands for an image feature; video_token_id: for a video's, None for families that take none.
    tiles: into how many an image is cut at most, None for families that cut none.

    Raises UsageError: an architecture that is not supported; limits that contradict each other or that the family does
    not have. Raises QuantError: a tokenizer or processor file that is missing, damaged, at odds with config.json, or in
    need of remote code.
    """

    def __init__(
        self,
        directory: Path,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        fps: float | None = None,
        max_frames: int | None = None,
        trust_remote_code: bool = False,
    ):
        self.directory = Path(directory)
        processor_files.check_files(self.directory)
        config = read_json(self.directory / "config.json")
        self.family = family_of(config, self.directory / "config.json")
        self._processor = Processor(
            self.directory,
            config,
            self.family.processing,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            fps=fps,
            max_frames=max_frames,
            trust_remote_code=trust_remote_code,
        )
        self.tokenizer, self.limits = self._processor.tokenizer, self._processor.limits
        self.image_token_id, self.tiles = self._processor.image_token_id, self._processor.tiles
        video = self.family.processing.video
        self.video_token_id = video.token_id(config) if video else None
        self._chat = ChatTemplate(self.directory, self.tokenizer, self.family.processing)

    def __call__(
        self,
        images: "Image.Image | Sequence[Image.Image] | None",
        prompt: str | None,
        answer: str | Sequence[int] = "",
        clips: Sequence[Clip] = (),
    ) -> dict[str, "torch.Tensor"]:
        """RGB images (one, several in the order in which they are shown, or None), prompt and answer -> model inputs,
        batch 1, as at the top of this file. prompt None: `answer` is a passage of text, without a chat template. clips:
        videos as `clip` reads them, shown behind the images.

        Raises QuantError: a text contains an image placeholder, a passage is empty or has images, the processor refuses
        an image (many do when it is over 200 times as wide as high) or would make it too large, or a template or
        tokenizer takes more than it may.
        """
        shown = [] if images is None else list(images) if isinstance(images, Sequence) else [images]
        self._refuse_placeholders("answer", [answer] if isinstance(answer, str) else [])
        if prompt is None:
            return self._passage([*shown, *clips], answer)
        turn = user_turn(prompt, len(shown), len(clips))
        return follow(self.chat([turn], shown, clips), self.answer_ids(answer))

    def clip(self, path: Path) -> Clip:
        """A video, sampled and resized for this model. Raises QuantError in one line: the family takes none, it cannot
        be decoded or would become too large; UsageError where PyAV is needed and not there.
        """
        if self._processor.video is None:
            raise QuantError(f"{self.family.name} takes no video")
        return self._processor.video.read(Path(path))

    def blank_clip(self, frames: int, height: int, width: int) -> Clip:
        """One of so many black frames of these sides, taken at the usual rate. Raises as `clip` does."""
        if self._processor.video is None:
            raise QuantError(f"{self.family.name} takes no video")
        return self._processor.video.blank(frames, height, width)

    def chat(
        self, messages: list[dict], images: "list[Image.Image]", clips: Sequence[Clip] = ()
    ) -> dict[str, "torch.Tensor"]:
        """A chat as templates.py has it, and its RGB images and its videos in their order -> model inputs, batch [1,
        ...]: what __call__ gives for one turn.

        Raises QuantError as __call__ does, and for a template that has no place for one of the images or videos.
        """
        parts = [part for message in messages for part in message["content"]]
        self._refuse_placeholders("prompt", [part["text"] for part in parts if part["type"] == "text"])
        text = self._chat.render(messages)
        processing = self.family.processing
        if (places := text.count(processing.image_token)) != len(images):
            raise QuantError(f"the chat template makes {places} places for {len(images)} images")
        if clips and processing.video and (places := text.count(processing.video.token)) != len(clips):
            raise QuantError(f"the chat template makes {places} places for {len(clips)} videos")
        return self._processor(images, text, self._chat.adds_special_tokens(text), clips)

    def _refuse_placeholders(self, what: str, texts: list[str]) -> None:
        if used := [token for token in self.family.processing.reserved if any(token in text for text in texts)]:
            raise QuantError(f"the {what} contains {used[0]}: leave it out, the image is put in by the chat template")

    def answer_ids(self, answer: str | Sequence[int]) -> list[int]:
        """The tokens that follow the prompt: those given, or those of a text and the one that ends a turn.

        Raises QuantError: an image placeholder among those given, or a tokenizer that takes more than it may.
        """
        if not isinstance(answer, str):
            for number in {self.image_token_id, self.video_token_id}.intersection(answer):
                raise QuantError(f"the answer's token ids hold {number}, an image's placeholder")
            return [int(token) for token in answer]
        if not answer:
            return []
        end = self.tokenizer.eos_token_id
        return self._chat.tokens(answer, add_special_tokens=False) + ([] if end is None else [end])

    def passage_ids(self, text: str | Sequence[int]) -> list[int]:
        """The tokens of a passage, without those that the tokenizer puts in front."""
        return self._chat.tokens(text, add_special_tokens=False) if isinstance(text, str) else [int(i) for i in text]

    def _passage(self, images: list, text: str | Sequence[int]) -> dict[str, "torch.Tensor"]:
        if images or not text:
            raise QuantError(
                "a passage (no prompt) is text alone: it must not be empty, and images and videos need a prompt"
            )
        if isinstance(text, str):
            self._chat.tokens(text, add_special_tokens=True)
            return self._processor([], text, True)
        front = self._chat.tokens("", add_special_tokens=True)  # such as <s>
        blank = self._processor([], "x", False)  # for the names and dtypes of the inputs
        return follow({name: tensor[:, :0] for name, tensor in blank.items()}, front + self.answer_ids(text))

    def read(self, samples: Sequence[Sample]) -> None:
        """Tokenize the texts of many samples at once, which takes a fraction of the time of one after the other."""
        texts = [(sample.answer, sample.is_passage) for sample in samples if isinstance(sample.answer, str)]
        self._chat.read((text, special) for text, special in texts if text)

    def encode_sample(self, sample: Sample) -> dict[str, "torch.Tensor"]:
        """Open and encode a sample: model inputs, batch [1, ...]. Raises QuantError, naming its images or its name, as
        __call__ does, and when a file has changed since.
        """
        images, clips = reopen_images(sample), [self.clip(path) for path in sample.videos]
        try:
            return self(images, sample.prompt, sample.answer, clips)
        except QuantError as error:
            where = ", ".join(map(str, sample.pictures)) or sample.name
            raise QuantError(f"{where}: {error}") from error.__cause__

    def answer_start(self, sample: Sample, inputs: dict[str, "torch.Tensor"]) -> int:
        """Where a sample's answer begins in input_ids [1, T]: T without one, 0 for a passage. Raises as answer_ids."""
        if sample.is_passage:
            return 0
        return inputs["input_ids"].shape[1] - len(self.answer_ids(sample.answer))

    @property
    def padding_id(self) -> int:
        """The number of a token that a batch can be padded with: the tokenizer's own, else one that ends an answer."""
        known = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0
        return next(number for number in known if number is not None)

    def decode(self, ids) -> str:
        """Token ids [T] -> text without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def raw(self, ids) -> str:
        """Token ids [T] -> text as it stands, special tokens and all spaces included."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def describe(self) -> dict:
        """What the recipe records: what made the pixels and the text, and what config.json had to fill in."""
        described: dict = {
            "processor": self.family.processing.processor,
            "image_processor": self._processor.image_processor,
            "image_backend": "own" if self.family.processing.own else "pil",
            "chat_template": self._chat.source,
            "filled_from_config": self._processor.filled,
        }
        if self.limits:
            described["min_pixels"], described["max_pixels"] = self.limits
        if self._processor.video:
            described |= self._processor.video.describe()
        return described


def follow(inputs: dict[str, "torch.Tensor"], answer: "Sequence[int] | torch.Tensor") -> dict[str, "torch.Tensor"]:
    """The inputs of a sample, [1, ...], with an answer's token ids, [A], behind them: what a model would have generated
    there, so that it is computed in one forward.
    """
    import torch

    ids = torch.as_tensor(answer, dtype=torch.int64).reshape(1, -1)
    longer = dict(inputs)
    for name, fill in (
        ("input_ids", ids),
        ("attention_mask", torch.ones_like(ids)),
        ("mm_token_type_ids", torch.zeros_like(ids)),
    ):
        if name in inputs:
            longer[name] = torch.cat([inputs[name], fill.to(inputs[name].dtype)], 1)
    return longer
