"""Tokenizers and processors of transformers, made for images without torchvision: what is not its documented
interface, or differs between 4.57 and 5.x. As in transformers_api.py, an upgrade that changes it breaks it here.

The functions work with 4.46, too, which the vendor's library needs.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .transformers_api import FIRST, named_class, version

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


def read_tokenizer(directory: Path, trust_remote_code: bool):
    """The tokenizer in `directory`. Raises whatever transformers does, of damaged files what is no Exception, too."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(
        str(directory), local_files_only=True, trust_remote_code=trust_remote_code
    )


def read_image_processor(directory: Path, trust_remote_code: bool, **settings):
    """The image processor in `directory`, the one that computes with Pillow and numpy: the torchvision one's pixels
    differ. settings: take precedence over its file. Raises whatever transformers does.
    """
    # Under its short name, transformers.AutoImageProcessor, it could not be had without torchvision until 5.17.
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    backend = {"backend": "pil"} if version() >= (5, 0) else {"use_fast": False}
    return AutoImageProcessor.from_pretrained(
        str(directory), local_files_only=True, trust_remote_code=trust_remote_code, **backend, **settings
    )


def make_image_processor(name: str, settings: dict):
    """The image processor of class `name`, the one that computes with Pillow, of these settings instead of a file's."""
    import transformers

    return getattr(transformers, f"{name}Pil", getattr(transformers, name))(**settings)


def make_processor(name: str, image_processor, tokenizer, **arguments):
    """A processor of class `name` for images and text, without a video processor, which would want torchvision: the
    class's own check of its parts lets an absent one pass.

    Raises UsageError when there is no such class, and whatever transformers does about the arguments.
    """
    whole = named_class(name)

    class ImagesOnly(whole):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument is not None:
                return super().check_argument_for_proper_class(argument_name, argument)

    return ImagesOnly(image_processor=image_processor, tokenizer=tokenizer, **arguments)


@dataclass(frozen=True)
class Sampled:
    """What a processor asks of a video beside its pixels: of `total` frames at `rate` a second the numbers `taken`."""

    total: int
    rate: float
    taken: tuple[int, ...]


def process(
    processor,
    images: "list[Image.Image]",
    text: str,
    add_special_tokens: bool,
    videos: "tuple[dict[str, Tensor], list[Sampled]] | None" = None,
    frame_features: int | None = None,
    **numbers: int,
) -> "dict[str, Tensor]":
    """RGB images (none: [] will do) and the text with their placeholders -> the model's inputs, batch 1. videos: what a
    video processor would make of them, for the placeholders of videos; frame_features: of a frame, where the processor
    counts otherwise; numbers: its merge_size and temporal_patch_size, by which features are counted.

    Raises UsageError for videos with a transformers that does not know them; whatever the processor does.
    """
    # Without its layout 4.x takes an image that is 1 or 3 pixels high for one with the channels first.
    given: dict[str, Any] = {"images": images, "input_data_format": "channels_last"} if images else {}
    # LLaVA-OneVision's takes images that are listed side by side for prompts of one image each.
    part = getattr(processor, "image_processor", None)
    if images and "batch_num_images" in getattr(part, "model_input_names", ()):
        given["images"] = [images]
    if videos:
        processor = _with_videos(processor, *videos, given, numbers)
        if frame_features:
            token, each = processor.video_token, [frame_features * len(clip.taken) for clip in videos[1]]
            processor.replace_video_token = lambda inputs, video_idx=0, **_: token * each[video_idx]
            if version() < (5, 0):  # it repeats a token that it finds; here it finds none
                before, *after = text.split(token)
                text = before + "".join(token * count + part for count, part in zip(each, after, strict=True))
                processor.video_token = "\0"
    return dict(processor(text=[text], return_tensors="pt", add_special_tokens=add_special_tokens, **given))


def _with_videos(processor, made: "dict[str, Tensor]", sampled: list[Sampled], given: dict, numbers: dict):
    """The processor with a video processor that hands over what is made already; adds to `given` what it is called
    with.
    """
    import torch

    if version() < FIRST:
        raise UsageError(f"videos need transformers {FIRST[0]}.{FIRST[1]} or a later one")
    from transformers.video_utils import VideoMetadata

    metadata = [
        VideoMetadata(each.total, fps=each.rate, duration=each.total / each.rate, frames_indices=list(each.taken))
        for each in sampled
    ]

    class Made:
        model_input_names = list(made)

        def __call__(self, videos=None, return_metadata=False, **kwargs):
            # 4.x's own answers with it where it is asked to, and most processors hand on what it answers.
            wanted = return_metadata or version() >= (5, 0)
            return {**made, "video_metadata": metadata} if wanted else dict(made)

    whole, video_processor = copy.copy(processor), Made()
    for name, number in numbers.items():
        setattr(video_processor, name, number)
    whole.video_processor = video_processor
    given["videos"] = [torch.zeros(len(each.taken), 3, 1, 1) for each in sampled]  # they are counted, no more
    if version() < (5, 0):
        given["videos_kwargs"] = {"fps": [each.rate * len(each.taken) / each.total for each in sampled]}
    return whole
