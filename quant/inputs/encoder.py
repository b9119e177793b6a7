"""One image and one prompt, or a prompt alone -> a model's inputs, as the checkpoint's own files have it.

    text   chat template(images, prompt)  ->  input_ids, attention_mask int64 [1,T]; where the model's class wants them,
                                              mm_token_type_ids [1,T]
    image  RGB  ->  pixel_values float32, as the family's processor makes them: [patches, 3*2*14*14] with
                    image_grid_thw [1,3] where images keep their proportions, [1,3,H,W] where all get one size

templates.py turns the prompt into text, processor.py images and text into tensors; what is particular to a family is
the `Processing` of its description. Left out: video, several images, several turns. transformers is imported when an
Encoder is made.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import QuantError
from ..families import family_of
from ..files.config_json import read_json
from . import processor_files
from .images import Sample, reopen_image
from .processor import Processor
from .templates import ChatTemplate

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Encoder:
    """The processor of the checkpoint in `directory`: `encoder(image, prompt)` gives the model's inputs.

    min_pixels, max_pixels: limits on the resized image's area instead of the checkpoint's own, where the family has
    limits.

    family, tokenizer: the checkpoint's. limits: (min_pixels, max_pixels) in force, or None. image_token_id: the number
    of the token that stands for an image feature. tiles: into how many an image is cut at most, None for families that
    cut none.

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
            trust_remote_code=trust_remote_code,
        )
        self.tokenizer, self.limits = self._processor.tokenizer, self._processor.limits
        self.image_token_id, self.tiles = self._processor.image_token_id, self._processor.tiles
        self._chat = ChatTemplate(self.directory, self.tokenizer, self.family.processing)

    def __call__(self, image: "Image.Image | None", prompt: str) -> dict[str, "torch.Tensor"]:
        """RGB image, or None for a turn of text alone, and prompt -> model inputs, batch 1, as at the top of this file.

        Raises QuantError: the prompt contains an image placeholder, the processor refuses the image (many do when it is
        over 200 times as wide as high) or would make it too large, or a template or tokenizer takes more than it may.
        """
        images = [] if image is None else [image]
        if used := [token for token in self.family.processing.reserved if token in prompt]:
            raise QuantError(f"the prompt contains {used[0]}: leave it out, the image is put in by the chat template")
        text = self._chat.render(prompt, len(images))
        return self._processor(images, text, self._chat.adds_special_tokens(text))

    def encode_sample(self, sample: Sample) -> dict[str, "torch.Tensor"]:
        """Open and encode a sample of images.load_samples: model inputs, batch [1, ...]. Raises QuantError, naming its
        file, as __call__ does, and when the file has changed since.
        """
        image = reopen_image(sample)
        try:
            return self(image, sample.prompt)
        except QuantError as error:
            raise QuantError(f"{sample.image}: {error}") from error.__cause__

    def decode(self, ids) -> str:
        """Token ids [T] -> text without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def describe(self) -> dict:
        """What the recipe records: what made the pixels and the text, and what config.json had to fill in."""
        described: dict = {
            "processor": self.family.processing.processor,
            "image_processor": self._processor.image_processor,
            "image_backend": "pil",
            "chat_template": self._chat.source,
            "filled_from_config": self._processor.filled,
        }
        if self.limits:
            described["min_pixels"], described["max_pixels"] = self.limits
        return described
