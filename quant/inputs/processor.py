"""The checkpoint's own processor, without torchvision or a network: images and the text of a chat -> a model's inputs.

Even for images only, transformers' AutoProcessor builds the video processor of some families, which wants torchvision.
Here the family's processor class gets an image processor on Pillow (torchvision's pixels differ) and a tokenizer, no
more. Counting and expanding image tokens, resizing and normalizing stay transformers' work.

The files are a stranger's: their numbers are checked before they are used (processor_files.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ..base import transformers_api
from ..base.errors import QuantError, UsageError, one_line
from ..families.family import Processing
from . import processor_files

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")


class Processor:
    """Tokenizer and image processor of the checkpoint in `directory`, whose config.json is `config`.

    min_pixels, max_pixels: instead of the checkpoint's own limits on a resized image's area; None for those.

    tokenizer: transformers' own. limits: (min_pixels, max_pixels) in force, None where every image is made one size.
    image_token_id: the placeholder's number. tiles: into how many an image is cut at most, or None. image_processor:
    its class. filled: the processor's arguments that came from config.json, because the checkpoint's files lack them.

    Raises UsageError: limits that contradict each other or that the family does not have. Raises QuantError: a file
    that is missing, damaged, at odds with config.json, or in need of remote code.
    """

    def __init__(
        self,
        directory: Path,
        config: dict,
        processing: Processing,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        trust_remote_code: bool = False,
    ):
        transformers_api.check_version(models=False)
        self._directory, self._processing = directory, processing
        self._file, self._settings = processor_files.image_processor(directory)
        processor_files.check_image_processor(self._file, self._settings, config)
        self.tiles = processing.tiles(self._settings) if processing.tiles else None
        self.limits = self._find_limits(min_pixels=min_pixels, max_pixels=max_pixels)
        # Where there are limits, the file's "size" is one of areas; they were checked just now.
        sides = [key for key in processor_files.SIZES if not (self.limits and key == "size")]
        processor_files.check_sides(self._file, self._settings, sides)
        arguments = self._arguments(config)
        self._load(arguments, trust_remote_code)
        self.image_token_id = self._find_image_token(config)

    def __call__(self, images: "list[Image.Image]", text: str, add_special_tokens: bool) -> "dict[str, Tensor]":
        """RGB images and a text with a placeholder for each -> the model's inputs, batch 1.

        Raises QuantError: the processor refuses an image or would make it too large.
        """
        sizes = ", ".join(f"{image.width}x{image.height}" for image in images)
        for image in images:
            area = processor_files.largest_area(image.width, image.height, self._settings, self.limits)
            if area > processor_files.MAX_AREA:
                raise QuantError(
                    f"an image of {image.width}x{image.height}: the processor makes it {area} pixels, at most"
                    f" {processor_files.MAX_AREA} are taken; make it smaller"
                )
        try:
            return transformers_api.process(self._processor, images, text, add_special_tokens)
        except Exception as error:
            where = f"an image of {sizes}" if images else "a text without an image"
            raise QuantError(f"{where}: {one_line(error)}") from error

    def _find_limits(self, **given: int | None) -> tuple[int, int] | None:
        """(min_pixels, max_pixels): as given, else the checkpoint's. Files of different ages keep them in different
        places, and each version of transformers overlooks or refuses some: so they are read here and handed on.
        """
        if self._processing.limits is None:
            if name := next((name for name, value in given.items() if value is not None), None):
                raise UsageError(f"{name}: {self._processing.processor} resizes every image to one size, leave it out")
            return None
        size = self._settings.get("size")
        size = size if isinstance(size, dict) else {}
        found = []
        for name, edge, default in zip(given, ("shortest_edge", "longest_edge"), self._processing.limits):
            candidates = (given[name], self._settings.get(name), size.get(edge), size.get(name), default)
            found.append(next(value for value in candidates if value is not None))
        if not all(type(value) is int for value in found):
            raise QuantError(
                f"{self._directory}: min_pixels and max_pixels of its processor must be integers, are {str(found):.80}"
            )
        if not 0 < found[0] <= found[1]:
            raise UsageError(f"min_pixels {found[0]}, max_pixels {found[1]}: the first must not exceed the second")
        if found[0] > (most := processor_files.MAX_AREA):
            raise UsageError(
                f"{self._file}: min_pixels {found[0]}: an image of at most {most} is taken; pass --min_pixels"
            )
        return found[0], found[1]

    def _arguments(self, config: dict) -> dict:
        """The processor's arguments that must agree with config.json: as processor_config.json has them, else as
        config.json does. Sets filled.
        """
        file = self._directory / "processor_config.json"
        stored = processor_files.optional_json(file)
        try:
            needed = self._processing.from_config(config)
        except (KeyError, TypeError, AttributeError) as error:
            raise QuantError(f"{self._directory / 'config.json'}: the processor needs {error}") from None
        self.filled = sorted(key for key in needed if stored.get(key) is None)
        arguments = {key: value if key in self.filled else stored[key] for key, value in needed.items()}
        processor_files.check_arguments(file, arguments)
        return arguments

    def _load(self, arguments: dict, trust_remote_code: bool) -> None:
        """Sets tokenizer, image_processor and _processor."""
        if not any((self._directory / name).is_file() for name in VOCABULARIES):
            raise QuantError(f"{self._directory}: no {', '.join(VOCABULARIES[:-1])} or {VOCABULARIES[-1]}")
        settings = {}
        if self.limits:
            low, high = self.limits
            settings = {"min_pixels": low, "max_pixels": high, "size": {"shortest_edge": low, "longest_edge": high}}
        try:
            self.tokenizer = transformers_api.read_tokenizer(self._directory, trust_remote_code)
            if self._processing.own:
                self._processor = images = self._processing.own.load()(self._file, self._settings, self.tokenizer)
            else:
                images = transformers_api.read_image_processor(self._directory, trust_remote_code, **settings)
                self._processor = transformers_api.make_processor(
                    self._processing.processor, images, self.tokenizer, **arguments
                )
        except (KeyboardInterrupt, SystemExit, QuantError):
            raise
        # OSError, ValueError, KeyError and more, by file and version; of the tokenizer's Rust, what is no Exception.
        except BaseException as error:
            if transformers_api.asks_for_remote_code(error):
                way_out = "its processor needs code of its own: read it, then pass --trust_remote_code True"
                raise QuantError(f"{self._directory}: {way_out}") from error
            raise QuantError(f"{self._directory}: the processor cannot be built: {one_line(error)}") from error

        self.image_processor = type(images).__name__

    def _find_image_token(self, config: dict) -> int:
        """The placeholder's number. The tokenizer writes it into the input, the model looks for config.json's."""
        token = self._processing.image_token
        found = self.tokenizer.convert_tokens_to_ids(token)
        expected = self._processing.image_token_id(config)
        if found is None or found == self.tokenizer.unk_token_id:
            raise QuantError(f"{self._directory}: the tokenizer does not know {token}")
        if found != expected:
            raise QuantError(
                f"{self._directory}: {token} is {found} for the tokenizer and {expected} in config.json; they are of"
                " different models, fetch them again"
            )
        return found
