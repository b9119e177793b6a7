"""One image and one prompt -> a model's inputs, by the checkpoint's own processor, without torchvision or a network.

Even for images only, AutoProcessor builds the video processor of Qwen-VL, which wants torchvision. Here the processor's
class gets AutoImageProcessor (PIL backend, pinned: the torchvision backend's pixels differ) and AutoTokenizer, and its
argument check lets the missing video processor pass. Counting and expanding image tokens, resizing and normalizing stay
transformers' work.

    text   chat template(image, prompt)  ->  input_ids, attention_mask [1,T]; Qwen in 5.x also mm_token_type_ids [1,T]
    image  RGB  ->  pixel_values: Qwen [patches, 3*2*14*14] with image_grid_thw [1,3]; LLaVA [1,3,H,W]

The files are a stranger's: their numbers are checked before they are used (processor_files.py); the template is
rendered, and its text cut into tokens, in a process that can be ended (confined.py) before the latter is done here.

A new family is one entry in PROCESSING. Left out: video, several images, several turns. transformers is imported when
an Encoder is made. Written for transformers 4.57 and 5.x; 4.46, which the vendor's library needs, works too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import QuantError, UsageError
from ..files.config_json import read_json
from . import processor_files
from .images import Sample, one_line, reopen_image
from .sandbox import TEXT, Failed, confined

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True)
class Processing:
    """How a family's inputs are made."""

    processor: str  # class in transformers
    image_token: str  # its text; the processor repeats it once for each image feature
    reserved: tuple[str, ...]  # placeholders that a prompt must not contain
    chat: str  # documented format of one question about one image, for checkpoints without a template
    from_config: Callable[[dict], dict]  # config.json -> the processor's arguments that it must agree with
    limits: tuple[int, int] | None  # the processor's own (min_pixels, max_pixels); None: every image gets one size


def _llava_arguments(config: dict) -> dict:
    vision = config["vision_config"]
    return {
        "patch_size": vision["patch_size"],
        "vision_feature_select_strategy": config.get("vision_feature_select_strategy", "default"),
        "num_additional_image_tokens": int(vision.get("model_type") == "clip_vision_model"),  # CLIP's class token
    }


_CHATML = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n"
)
_QWEN = dict(
    image_token="<|image_pad|>",
    reserved=("<|image_pad|>", "<|video_pad|>"),
    chat=_CHATML,
    limits=(56 * 56, 28 * 28 * 1280),
)

PROCESSING = {  # config.json's architecture -> how its inputs are made
    "Qwen2VLForConditionalGeneration": Processing("Qwen2VLProcessor", from_config=lambda config: {}, **_QWEN),
    "Qwen2_5_VLForConditionalGeneration": Processing("Qwen2_5_VLProcessor", from_config=lambda config: {}, **_QWEN),
    "LlavaForConditionalGeneration": Processing(
        "LlavaProcessor",
        image_token="<image>",
        reserved=("<image>",),
        chat="USER: <image>\n{prompt} ASSISTANT:",
        from_config=_llava_arguments,
        limits=None,
    ),
}


class Encoder:
    """The processor of the checkpoint in `directory`: `encoder(image, prompt)` gives the model's inputs.

    min_pixels, max_pixels: limits on the resized image's area instead of the checkpoint's own (Qwen only).
    Raises UsageError: architecture without an entry in PROCESSING; limits that contradict each other or that the family
    does not have. Raises QuantError: a tokenizer or processor file that is missing, damaged, at odds with config.json,
    or in need of remote code.
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
        architectures = config.get("architectures")
        architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else None
        if architecture not in PROCESSING:
            known = ", ".join(sorted(PROCESSING))
            raise UsageError(
                f"{self.directory / 'config.json'}: architecture {architecture} has no encoder, only {known}"
            )
        self._family, self._texts = PROCESSING[architecture], {}
        self._file, self._said = processor_files.image_processor(self.directory)
        processor_files.check_image_processor(self._file, self._said, config)
        self._limits = self._find_limits(min_pixels=min_pixels, max_pixels=max_pixels)
        processor_files.check_sides(
            self._file, self._said, processor_files.SIZES[bool(self._limits) :]
        )  # Qwen's size is one of areas
        self._load(config, trust_remote_code)
        self._check_image_token(config)
        self._template, self._template_source = self._find_template()

    def __call__(self, image: "Image.Image", prompt: str) -> dict[str, "torch.Tensor"]:
        """RGB image, prompt -> model inputs, batch 1, as shown at the top of this file; float32 pixels, int64 ids.

        Raises QuantError: the prompt contains an image placeholder, the processor refuses the image (Qwen's: when it is
        over 200 times as wide as high) or would make it too large, or a template or tokenizer takes more than it may.
        """
        if used := [token for token in self._family.reserved if token in prompt]:
            raise QuantError(f"the prompt contains {used[0]}: leave it out, the image is put in by the chat template")
        area, most = processor_files.area(image.width, image.height, self._said, self._limits), processor_files.MAX_AREA
        if area > most:
            raise QuantError(
                f"an image of {image.width}x{image.height}: the processor makes it {area} pixels, at most {most} are"
                " taken; make it smaller"
            )
        try:
            text = self._render(self._template, prompt)
        except (Failed, QuantError) as error:
            raise QuantError(f"{self.directory}: chat template or tokenizer: {error}") from None
        try:
            inputs = self._processor(
                images=[image],
                text=[text],
                return_tensors="pt",
                input_data_format="channels_last",  # else 4.x takes an image 1 or 3 pixels high for channels first
                add_special_tokens=self._adds_special_tokens(text),
            )
        except Exception as error:
            raise QuantError(f"an image of {image.width}x{image.height}: {one_line(error)}") from error
        return dict(inputs)

    def encode_sample(self, sample: Sample) -> dict[str, "torch.Tensor"]:
        """Open and encode a sample of images.load_samples; a QuantError names its file, if it is not what it was then,
        too.
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
        described = {
            "processor": self._family.processor,
            "image_processor": type(self._processor.image_processor).__name__,
            "image_backend": "pil",
            "chat_template": self._template_source,
            "filled_from_config": self._filled,
        }
        if self._limits:
            described["min_pixels"], described["max_pixels"] = self._limits
        return described

    # ---- loading

    def _find_limits(self, **given: int | None) -> tuple[int, int] | None:
        """(min_pixels, max_pixels): as given, else the checkpoint's. Files of different ages keep them in different
        places, and each version of transformers overlooks or refuses some: so they are read here and handed on.
        """
        if self._family.limits is None:
            if name := next((name for name, value in given.items() if value is not None), None):
                raise UsageError(f"{name}: {self._family.processor} resizes every image to one size, leave it out")
            return None
        stored, size, found = self._said, self._said.get("size"), []
        size = size if isinstance(size, dict) else {}
        for name, edge, default in zip(given, ("shortest_edge", "longest_edge"), self._family.limits):
            candidates = (given[name], stored.get(name), size.get(edge), size.get(name), default)
            found.append(next(value for value in candidates if value is not None))
        if not all(type(value) is int for value in found):
            raise QuantError(
                f"{self.directory}: min_pixels and max_pixels of its processor must be integers, are {str(found):.80}"
            )
        if not 0 < found[0] <= found[1]:
            raise UsageError(f"min_pixels {found[0]}, max_pixels {found[1]}: the first must not exceed the second")
        if found[0] > (most := processor_files.MAX_AREA):
            raise UsageError(
                f"{self._file}: min_pixels {found[0]}: an image of at most {most} is taken; pass --min_pixels"
            )
        return found[0], found[1]

    def _load(self, config: dict, trust_remote_code: bool) -> None:
        """Sets tokenizer, _processor and _filled."""
        stored = processor_files.optional_json(self.directory / "processor_config.json")
        if not any((self.directory / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
            raise QuantError(f"{self.directory}: no tokenizer.json, vocab.json or tokenizer.model")
        try:
            needed = self._family.from_config(config)
        except (KeyError, TypeError, AttributeError) as error:
            raise QuantError(f"{self.directory / 'config.json'}: the processor needs {error}") from None
        self._filled = sorted(key for key in needed if stored.get(key) is None)
        arguments = {key: value if key in self._filled else stored[key] for key, value in needed.items()}
        processor_files.check_arguments(self.directory / "processor_config.json", arguments)

        import transformers
        from transformers.models.auto.image_processing_auto import (
            AutoImageProcessor,
        )  # the top-level name wants torchvision up to 5.17

        pinned = {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
        if self._limits:
            low, high = self._limits
            pinned |= {"min_pixels": low, "max_pixels": high, "size": {"shortest_edge": low, "longest_edge": high}}
        common = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        try:
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(str(self.directory), **common)
            image_processor = AutoImageProcessor.from_pretrained(str(self.directory), **pinned, **common)
            image_only = _image_only(getattr(transformers, self._family.processor))
            self._processor = image_only(image_processor=image_processor, tokenizer=self.tokenizer, **arguments)
        except (KeyboardInterrupt, SystemExit):
            raise
        except (
            BaseException
        ) as error:  # OSError, ValueError, KeyError and more, by file and version; of Rust, what is no Exception
            if "trust_remote_code" in str(error):
                way_out = "its processor needs code of its own: read it, then pass --trust_remote_code True"
                raise QuantError(f"{self.directory}: {way_out}") from error
            raise QuantError(f"{self.directory}: the processor cannot be built: {one_line(error)}") from error

    def _check_image_token(self, config: dict) -> None:
        """Sets image_token_id. The tokenizer writes its number, the model looks for config.json's."""
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self._family.image_token)
        expected = config.get("image_token_id", config.get("image_token_index", self.image_token_id))
        if self.image_token_id is None or self.image_token_id == self.tokenizer.unk_token_id:
            raise QuantError(f"{self.directory}: the tokenizer does not know {self._family.image_token}")
        if self.image_token_id != expected:
            numbers = f"{self.image_token_id} for the tokenizer and {expected} in config.json"
            raise QuantError(f"{self.directory}: {self._family.image_token} is {numbers}")

    # ---- chat template

    def _find_template(self) -> tuple[str | None, str]:
        """-> (template, where it is from); None stands for the family's documented format. A template that has no place
        for an image (a language model's, left over) is passed over. Raises QuantError for one that takes more than it may.
        """
        passed_over = []
        for source, template in self._templates():
            try:
                count = self._render(template, "x").count(self._family.image_token)
            except Failed:  # Jinja errors: a text-only template fails on content that is a list
                count = 0
            except QuantError as error:
                raise QuantError(
                    f"{self.directory / source}: its chat template {error}; without it the family's own format is used"
                ) from None
            if count == 1:
                return template, source
            passed_over.append(source)
        return None, "built in" + (f" (no place for an image in {', '.join(passed_over)})" if passed_over else "")

    def _templates(self) -> list[tuple[str, str]]:
        jinja = self.directory / "chat_template.jinja"
        own = self.tokenizer.chat_template
        try:
            text = jinja.read_text(encoding="utf-8") if jinja.is_file() else None
        except (OSError, ValueError) as error:
            raise QuantError(f"{jinja}: {one_line(error)}") from None
        found = [
            (jinja.name, text),
            (
                "chat_template.json",
                processor_files.optional_json(self.directory / "chat_template.json").get("chat_template"),
            ),
            ("tokenizer_config.json", own.get("default") if isinstance(own, dict) else own),
        ]
        return [(source, template) for source, template in found if template and isinstance(template, str)]

    def _render(self, template: str | None, prompt: str) -> str:
        """The chat of one turn. It is made, and cut into tokens, in a process that can be ended; then the latter is
        safe here, too.
        """

        def render() -> str:
            text = self._family.chat.replace("{prompt}", prompt)
            if template is not None:
                turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
                text = self.tokenizer.apply_chat_template(
                    [turn], chat_template=template, tokenize=False, add_generation_prompt=True
                )
            if len(text) <= TEXT:
                self.tokenizer(text, add_special_tokens=self._adds_special_tokens(text))
            return text

        if (template, prompt) not in self._texts:
            self._texts[template, prompt] = confined(render)
        return self._texts[template, prompt]

    def _adds_special_tokens(self, text: str) -> bool:
        """A template may have written <s> itself."""
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))


def _image_only(processor_class: type) -> type:
    """The processor's class, content without a video processor; its other arguments are checked as ever."""

    class ImageOnly(processor_class):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument is not None:
                return super().check_argument_for_proper_class(argument_name, argument)

    return ImageOnly
