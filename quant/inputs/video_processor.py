"""Frames of a video -> what the model takes, with the arithmetic of the family's own video processor in transformers.

That class needs torchvision, and this project does without; what it computes is few lines in torch:

    which frames, their size        the family's formulas (families/video.py)
    resizing                        torch's own, antialiased, on 8-bit frames: what torchvision calls, rounded as there
    pixels                          (frame - 255 mean) / (255 std), float32
    patches                         two frames of the same place together; the last frame again where one is left

Each frame is resized as it comes, so that one is in memory at full size. Counting and expanding tokens, time stamps
and seconds per patch stay the work of transformers' processor, which is given what is made here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import QuantError
from ..families.processing import Processing
from ..families.video import Video
from . import processor_files, video

if TYPE_CHECKING:
    import numpy as np
    import torch

TEMPORAL = 2  # frames in a patch, where no file says it
FILTERS = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers -> torch's names


@dataclass(frozen=True)
class Clip:
    """Frames of a video, resized: frames uint8 [frames, 3, height, width]; of `total` at `rate` a second they are those
    numbered `taken`. name: what messages call it.
    """

    name: str
    frames: "torch.Tensor"
    taken: tuple[int, ...]
    total: int
    rate: float

    @property
    def sampled_rate(self) -> float:
        """Frames a second of those taken, on average."""
        return len(self.taken) / self.total * self.rate


class VideoProcessor:
    """The video processor of the checkpoint in `directory`, whose config.json is `config`.

    fps, max_frames: how videos are sampled; min_pixels, max_pixels: of each frame; each instead of what the
    checkpoint's files say, None for that. patch, merge, frames: of a patch along each side, of a feature, along time;
    frame_features: of a frame, where transformers' processor counts otherwise.

    Raises QuantError for numbers in the files that cannot be.
    """

    def __init__(
        self,
        directory: Path,
        config: dict,
        processing: Processing,
        *,
        fps: float | None,
        max_frames: int | None,
        min_pixels: int | None,
        max_pixels: int | None,
    ):
        assert processing.video is not None
        self._said: Video = processing.video
        self._file, self._settings = processor_files.video_processor(
            directory, processing.image_settings(config) if processing.image_settings else None
        )
        processor_files.check_image_processor(self._file, self._settings, config, processing.agrees)
        processor_files.check_video(self._file, self._settings)
        self.patch, self.merge = processing.patch(config), processing.merge(config)
        self.frames = self._settings.get("temporal_patch_size") or TEMPORAL
        self._fps = fps or self._settings.get("fps") or self._said.fps
        self._most = self._settings.get("max_frames") or self._said.most
        self._most = min(self._most, max_frames or self._most)
        count = self._said.frame_features
        self.frame_features = count(config) if count else None
        self._pixels = min_pixels, max_pixels

    def describe(self) -> dict:
        """How videos are sampled: frames a second (None: as many as may be), and the most."""
        return {"fps": self._fps, "max_frames": self._most}

    def read(self, path: Path) -> Clip:
        """Sample, decode and resize a video. Raises what video.frames does, and QuantError for one that would become
        too large.
        """
        import torch

        def choose(total: int, rate: float | None) -> list[int]:
            if rate is None:  # frames in a folder were sampled before
                count = min(total, self._most)
                return [number * total // count for number in range(count)]
            return self._said.sample(total, rate, self._fps, self._most)

        header, frames = video.frames(path, choose)
        try:
            resized = self._resizing(len(header.taken), header.height, header.width)
        except QuantError as error:
            raise QuantError(f"{path}: {error}") from None
        kept = torch.stack([resized(frame) for frame in frames])
        rate = header.rate if header.rate is not None else float(self._fps or 1)
        return Clip(path.name, kept, header.taken, header.total, rate)

    def blank(self, count: int, height: int, width: int) -> Clip:
        """`count` black frames, resized. Raises as `size` does."""
        import torch

        black = torch.zeros(count, 3, *self.size(count, height, width), dtype=torch.uint8)
        return Clip("blank", black, tuple(range(count)), count, float(self._fps or 1))

    def features(self, clips: Sequence[Clip]) -> "dict[str, torch.Tensor]":
        """The model's inputs of the videos, without those of the text: pixel_values_videos float32, [patches, values]
        or [videos, frames, 3, height, width] as Video.layout says, and of patches video_grid_thw int64 [videos, 3].

        Raises QuantError for videos that do not go together.
        """
        import torch

        mean, std = (
            torch.tensor(self._settings.get(key) or said).mul(1 / self._settings.get("rescale_factor", 1 / 255))
            for key, said in (("image_mean", self._said.mean), ("image_std", self._said.std))
        )
        pixels = [(clip.frames.float() - mean[:, None, None]) / std[:, None, None] for clip in clips]
        if self._said.layout == "frames":
            if len({each.shape[0] for each in pixels}) > 1:
                counts = ", ".join(f"{clip.name} {len(clip.taken)}" for clip in clips)
                raise QuantError(f"videos of one prompt need as many frames each, and have {counts}; see --max_frames")
            return {"pixel_values_videos": torch.stack(pixels)}
        patches = [self._patches(each) for each in pixels]
        return {
            "pixel_values_videos": torch.cat([flat for flat, _ in patches]),
            "video_grid_thw": torch.tensor([grid for _, grid in patches]),
        }

    def _patches(self, pixels: "torch.Tensor") -> "tuple[torch.Tensor, list[int]]":
        """float32 [T, 3, H, W] -> [patches, 3 * frames * side * side], those of one feature side by side, and the
        numbers of patches along time, height and width.
        """
        import torch

        if left := -len(pixels) % self.frames:
            pixels = torch.cat([pixels, pixels[-1:].expand(left, -1, -1, -1)])
        time, height, width = len(pixels) // self.frames, *(side // self.patch for side in pixels.shape[2:])
        rows, columns = height // self.merge, width // self.merge
        cut = pixels.view(time, self.frames, 3, rows, self.merge, self.patch, columns, self.merge, self.patch)
        flat = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(time * height * width, -1)
        return flat, [time, height, width]

    def size(self, count: int, height: int, width: int) -> tuple[int, int]:
        """What `count` frames of these sides are resized to, in pixels. Raises QuantError for sides that the processor
        refuses, and where it is too large.
        """
        if self._said.size is None:
            rows, columns = self._one_size(height, width)
        else:
            low, high = self._limits(count)
            capped = bool(self._settings.get("cap_pixels_per_frame"))
            multiple = self.patch * self.merge
            rows, columns = self._said.size(count, height, width, multiple, (low, high), capped)
        if (area := count * rows * columns) > processor_files.MAX_AREA:
            raise QuantError(
                f"{count} frames of {height}x{width}: the processor makes them {rows}x{columns}, {area} pixels, at most"
                f" {processor_files.MAX_AREA} are taken; --max_frames or --max_pixels takes less"
            )
        return rows, columns

    def _limits(self, count: int) -> tuple[int, int]:
        assert self._said.limits is not None
        size = self._settings.get("size")
        size = size if isinstance(size, dict) else {}
        found = []
        for number, (key, edge) in enumerate((("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))):
            given = self._pixels[number]
            if given is not None and self._said.all_frames:
                given *= count
            stored = (self._settings.get(key), size.get(edge), size.get(key), self._said.limits[number])
            found.append(given or next(value for value in stored if value is not None))
        if self._pixels[1] and not self._pixels[0]:  # the files' lower limit gives way to the user's upper one
            found[0] = min(found)
        if not 0 < found[0] <= found[1]:
            raise QuantError(
                f"videos: min_pixels {found[0]}, max_pixels {found[1]}: the first must not exceed the second"
            )
        return found[0], found[1]

    def _one_size(self, height: int, width: int) -> tuple[int, int]:
        crop = self._settings.get("crop_size")
        if self._settings.get("do_center_crop") and isinstance(crop, dict) and {"height", "width"} <= crop.keys():
            return crop["height"], crop["width"]
        return self._covering(height, width)

    def _covering(self, height: int, width: int) -> tuple[int, int]:
        """What a frame is resized to, before it is cropped."""
        size = self._settings.get("size")
        if isinstance(size, dict) and {"height", "width"} <= size.keys():
            return size["height"], size["width"]
        if not isinstance(size, dict) or not size.get("shortest_edge"):
            raise QuantError(
                f"{self._file}: size of a video's frames is {size!r:.60}, height and width, or shortest_edge, were"
                " expected"
            )
        edge, short, long = size["shortest_edge"], *sorted((height, width))
        sides = edge, int(edge * long / short)
        if sides[1] * edge > processor_files.MAX_AREA:
            raise QuantError(f"frames of {height}x{width}: too long for their width; crop them")
        return sides if height <= width else sides[::-1]

    def _resizing(self, count: int, height: int, width: int) -> "Callable[[np.ndarray], torch.Tensor]":
        """uint8 [height, width, 3] -> [3, rows, columns]."""
        import torch
        from torch.nn.functional import interpolate

        kept = self.size(count, height, width)
        rows, columns = self._covering(height, width) if self._said.size is None else kept
        top, left = ((whole - part) // 2 for whole, part in zip((rows, columns), kept))
        if min(top, left) < 0:
            raise QuantError(f"{self._file}: frames of {rows}x{columns} cannot be cropped to {kept[0]}x{kept[1]}")
        number = self._settings.get("resample")
        if (mode := FILTERS.get(3 if number is None else number)) is None:
            raise QuantError(f"{self._file}: resample {number}: videos are resized by {FILTERS}")

        def resized(frame: "np.ndarray") -> "torch.Tensor":
            pixels = torch.from_numpy(frame.copy()).permute(2, 0, 1).contiguous()
            if (height, width) != (rows, columns):
                smooth = {} if mode == "nearest-exact" else {"antialias": True, "align_corners": False}
                pixels = interpolate(pixels[None], (rows, columns), mode=mode, **smooth)[0]
            return pixels[:, top : top + kept[0], left : left + kept[1]]

        return resized
