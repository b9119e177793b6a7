"""The checkpoint's own processor, without torchvision or a network: images and the text of a chat -> a model's inputs.

Even for images only, transformers' AutoProcessor builds the video processor of some families, which wants torchvision.
Here the family's processor class gets an image processor on Pillow (torchvision's pixels differ) and a tokenizer, no
more. Counting and expanding image tokens, resizing and normalizing stay transformers' work.

The files are a stranger's: their numbers are checked before they are used (processor_files.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ..base import transformers_api, transformers_processors
from ..base.errors import QuantError, UsageError, one_line
from ..families.processing import Processing
from . import processor_files
from .video_processor import Clip, VideoProcessor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image
    from torch import Tensor

VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")


class Processor:
    """Tokenizer and image processor of the checkpoint in `directory`, whose config.json is `config`.

    min_pixels, max_pixels: instead of the checkpoint's own limits on a resized image's area; fps, max_frames: instead
    of how it samples videos; None for those.

    tokenizer: transformers' own. video: what prepares videos, None for families that take none. limits: (min_pixels,
    max_pixels) in force, None where every image is made one size. image_token_id: the placeholder's number. tiles: into
    how many an image is cut at most, or None. image_processor: its class. filled: the processor's arguments that came
    from config.json, because the checkpoint's files lack them.

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
        fps: float | None = None,
        max_frames: int | None = None,
        trust_remote_code: bool = False,
    ):
        transformers_api.check_version(models=False)
        self._directory, self._processing = directory, processing
        known = processing.image_settings(config) if processing.image_settings else None
        self._file, self._settings = processor_files.image_processor(directory, known)
        processor_files.check_image_processor(self._file, self._settings, config, processing.agrees)
        self.tiles = processing.tiles(config, self._settings) if processing.tiles else None
        processor_files.check_tiles(self._file, self.tiles)
        self.limits = self._find_limits(min_pixels=min_pixels, max_pixels=max_pixels)
        # Where there are limits, the file's "size" is one of areas; they were checked just now.
        sides = [key for key in processor_files.SIZES if not (self.limits and key == "size")]
        processor_files.check_sides(self._file, self._settings, sides)
        self.video = None
        if processing.video:
            self.video = VideoProcessor(
                directory,
                config,
                processing,
                fps=fps,
                max_frames=max_frames,
                min_pixels=min_pixels,
                max_pixels=max_pixels,
            )
        arguments = self._arguments(config)
        self._load(arguments, trust_remote_code)
        self.image_token_id = self._find_image_token(config)

    def __call__(
        self, images: "list[Image.Image]", text: str, add_special_tokens: bool, clips: "Sequence[Clip]" = ()
    ) -> "dict[str, Tensor]":
        """RGB images, videos as `video` reads them, and a text with a placeholder for each -> the model's inputs, batch
        1.

        Raises QuantError: the processor refuses an image or would make it too large; videos that do not go together.
        """
        sizes = ", ".join(f"{image.width}x{image.height}" for image in images)
        for image in images:
            area = processor_files.largest_area(image.width, image.height, self._settings, self.limits)
            if area > processor_files.MAX_AREA:
                raise QuantError(
                    f"an image of {image.width}x{image.height}: the processor makes it {area} pixels, at most"
                    f" {processor_files.MAX_AREA} are taken; make it smaller"
                )
        videos, numbers = None, {}
        if clips and self.video:
            sampled = [transformers_processors.Sampled(clip.total, clip.rate, clip.taken) for clip in clips]
            videos = self.video.features(clips), sampled
            numbers = {"merge_size": self.video.merge, "temporal_patch_size": self.video.frames}
            if count := self.video.frame_features:
                numbers["frame_features"] = count
        try:
            return transformers_processors.process(self._processor, images, text, add_special_tokens, videos, **numbers)
        except QuantError:
            raise
        except Exception as error:
            where = f"an image of {sizes}" if images else "a text without an image"
            where = f"{', '.join(clip.name for clip in clips)} and {where}" if clips else where
            raise QuantError(f"{where}: {one_line(error)}") from error

    def _find_limits(self, **given: int | None) -> tuple[int, int] | None:
        """(min_pixels, max_pixels): as given, else the checkpoint's. Files of different ages keep them in different
        places, and each version of transformers overlooks or refuses some: so they are read here and handed on.
        """
        if self._processing.limits is None:
            if name := next((name for name, value in given.items() if value is not None), None):
                raise UsageError(f"{name}: {self._processing.processor} resizes every image to one size, leave it out")
            return None
        size, frames = self._settings.get("size"), self._processing.frames
        size = size if isinstance(size, dict) else {}
        found = []
        for name, edge, default in zip(given, ("shortest_edge", "longest_edge"), self._processing.limits):
            asked = given[name]
            if type(asked) is int:
                asked *= frames
            stored = (self._settings.get(name), size.get(edge), size.get(name), default * frames)
            found.append(next(value for value in (asked, *stored) if value is not None))
        if not all(type(value) is int for value in found):
            raise QuantError(
                f"{self._directory}: min_pixels and max_pixels of its processor must be integers, are {str(found):.80}"
            )
        self._edges = found[0], found[1]  # as the file has them: of all frames together
        low, high = -(-found[0] // frames), found[1] // frames
        if not 0 < low <= high:
            raise UsageError(f"min_pixels {low}, max_pixels {high}: the first must not exceed the second")
        if low > (most := processor_files.MAX_AREA):
            raise UsageError(f"{self._file}: min_pixels {low}: an image of at most {most} is taken; pass --min_pixels")
        return low, high

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
            low, high = self._edges
            settings = {"min_pixels": low, "max_pixels": high, "size": {"shortest_edge": low, "longest_edge": high}}
        try:
            self.tokenizer = transformers_processors.read_tokenizer(self._directory, trust_remote_code)
            added = [token for token in self._processing.added_tokens if token not in self.tokenizer.get_vocab()]
            self.tokenizer.add_tokens(added, special_tokens=True)
            if self._processing.own:
                self._processor = images = self._processing.own.load()(self._file, self._settings, self.tokenizer)
            else:
                if self._file.name == "config.json":
                    kind = self._processing.image_processors[0]
                    images = transformers_processors.make_image_processor(kind, self._settings)
                else:
                    images = transformers_processors.read_image_processor(
                        self._directory, trust_remote_code, **settings
                    )
                self._processor = transformers_processors.make_processor(
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
