"""Overlapping crops: one image and a text -> a model's inputs, for checkpoints whose own processor is code that wants
torchvision or tensorflow. The arithmetic is that of Molmo's published processor; settings: preprocessor_config.json.

With sides in patches of p pixels, a crop of P x P patches, margins l and r of it that the next crop repeats, and
W = P - l - r between them, a tiling of R x C crops covers (R W + l + r) x (C W + l + r) patches:

    tiling   of all with R C <= max_crops that which enlarges (h - (l + r) p, w - (l + r) p) least to W p x W p for each
             crop; where none is large enough, that which shrinks it least
    resize   to that size, proportions kept, the rest black and even on both sides: bilinear, antialiased, in float32
             of 0 to 1 (torch's kernel, which is what torchvision calls); then (x - mean) / std
    crops    the whole image at P x P first, then the tiling's, row by row; pixels of a patch lie row by row, too
    pooled   2 x 2 patches make one feature. A crop's features that a neighbour has as well, l/2 or r/2 at each inner
             edge, are dropped (index -100); the rest get their place in the text, in the image's raster order
    text     <im_start>, the features of the whole image, <im_end>, <im_start>, those of the crops, <im_end>, a <im_col>
             behind each row: all of this in the place of the text's one <im_patch>
    masks    what share of each patch is image. The row of the whole image, -1, stands last, not first: so every crop
             gets the next one's mask. The model was trained with it
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..base.errors import QuantError
from .processor_files import MAX_PATCH, MAX_SIDE, MAX_TILES

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

POOL = 2
DROPPED = -100
START, END, PATCH, COLUMN = "<im_start>", "<im_end>", "<im_patch>", "<im_col>"


class Crops:
    """Called as transformers' processors are: images (one or none) and text -> input_ids, attention_mask int64 [1,T],
    and with an image of N - 1 crops images float32 [1, N, P*P, 3 p*p], image_masks float32 [1, N, P*P], image_input_idx
    int64 [1, N, P/2 * P/2].

    file: of the settings, for messages. tokenizer: transformers' own. Raises QuantError for settings that contradict
    each other or lie beyond any image's, and for a tokenizer without the tokens above.
    """

    def __init__(self, file: Path, settings: dict, tokenizer):
        self._tokenizer = tokenizer
        self._patch = _number(file, settings, "image_patch_size", 14, MAX_PATCH)
        self._most = _number(file, settings, "max_crops", 12, MAX_TILES)
        side = _pair(file, settings, "base_image_input_size", (336, 336), MAX_SIDE)
        self._margins = _pair(file, settings, "overlap_margins", (4, 4), MAX_PATCH, least=0)
        self._side, rest = divmod(side[0], self._patch)
        left, right = self._margins
        self._between = self._side - left - right
        if side[0] != side[1] or rest or self._side % POOL or left % POOL or right % POOL or self._between <= 0:
            raise QuantError(
                f"{file}: crops of {side[0]}x{side[1]} pixels, patches of {self._patch} and margins of {left} and"
                f" {right} patches make no squares of {POOL} x {POOL} patches; fetch the processor's files again"
            )
        for key in ("image_token_length_h", "image_token_length_w"):
            if (said := settings.get(key, self._side // POOL)) != self._side // POOL:
                raise QuantError(f"{file}: {key} is {said!r:.40}, a crop has {self._side // POOL} features a side")
        normal = settings.get("do_normalize") is not False
        self._mean = np.array(settings.get("image_mean") or [0, 0, 0] if normal else [0, 0, 0], np.float32)
        self._std = np.array(settings.get("image_std") or [1, 1, 1] if normal else [1, 1, 1], np.float32)
        self._ids = {}
        for token in (START, END, PATCH, COLUMN):
            self._ids[token] = tokenizer.convert_tokens_to_ids(token)
            if self._ids[token] in (None, tokenizer.unk_token_id):
                raise QuantError(f"{file.parent}: the tokenizer does not know {token}")

    def __call__(
        self, text: list[str], images: "list[Image.Image] | None" = None, add_special_tokens: bool = True, **_
    ) -> "dict[str, Tensor]":
        """Raises QuantError for more than one image, and for one so thin that nothing is left of it."""
        import torch

        ids = np.array(self._tokenizer(text[0], add_special_tokens=add_special_tokens)["input_ids"], np.int64)
        if not images:
            return _batch({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        if len(images) > 1:
            raise QuantError(f"{len(images)} images in one prompt: the model takes one")
        pixels = torch.from_numpy(np.array(images[0].convert("RGB"))).permute(2, 0, 1).float() / 255
        tiling = choose_tiling(*self._inner(pixels.shape[1:]), self._between * self._patch, self._most)
        crops, masks = self._crops(pixels, tiling)
        tokens, places = self._layout(tiling)
        at = int(np.flatnonzero(ids == self._ids[PATCH])[0])
        ids = np.concatenate([ids[:at], tokens, ids[at + 1 :]])
        return _batch(
            {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "images": crops,
                "image_masks": masks,
                "image_input_idx": np.where(places < 0, DROPPED, places + at),
            }
        )

    def _inner(self, size) -> tuple[int, int]:
        margin = sum(self._margins) * self._patch
        return int(size[0]) - margin, int(size[1]) - margin

    def _crops(self, pixels: "Tensor", tiling: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Pixels [3, H, W] -> patches [N, P*P, 3 p*p] and masks [N, P*P]."""
        step, side = self._between * self._patch, self._side * self._patch
        margin = sum(self._margins) * self._patch
        whole, _ = self._resized(pixels, (side, side))
        large, seen = self._resized(pixels, (tiling[0] * step + margin, tiling[1] * step + margin))
        corners = [(row * step, column * step) for row in range(tiling[0]) for column in range(tiling[1])]
        cut = [whole] + [large[y : y + side, x : x + side] for y, x in corners]
        shares = [seen[y : y + side, x : x + side, None] for y, x in corners]
        masks = [_patches(share, self._patch).mean(-1, dtype=np.float32) for share in shares]
        masks.append(np.full(self._side**2, -1, np.float32))
        return np.stack([_patches(crop, self._patch) for crop in cut]), np.stack(masks)

    def _resized(self, pixels: "Tensor", size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Normalized pixels float32 [h, w, 3] with the image in their middle, and float32 [h, w]: 1 where it is."""
        import torch

        height, width = pixels.shape[1:]
        # In float32, as the model's own processor has it: now and then that makes a side one pixel shorter.
        scale = min(np.float32(size[0]) / np.float32(height), np.float32(size[1]) / np.float32(width))
        scaled = int(np.float32(height) * scale), int(np.float32(width) * scale)
        if not all(scaled):
            raise QuantError(f"{height}x{width} pixels become {scaled[0]}x{scaled[1]}: crop the image")
        if scaled != (height, width):
            pixels = torch.nn.functional.interpolate(pixels[None], scaled, mode="bilinear", antialias=True)[0]
        top, left = (size[0] - scaled[0]) // 2, (size[1] - scaled[1]) // 2
        canvas, seen = np.zeros((*size, 3), np.float32), np.zeros(size, np.float32)
        inside = slice(top, top + scaled[0]), slice(left, left + scaled[1])
        canvas[inside], seen[inside] = pixels.clamp(0, 1).permute(1, 2, 0).numpy(), 1
        return (canvas - self._mean) / self._std, seen

    def _layout(self, tiling: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of an image [T], and of each crop's features the place among them [N, P/2 * P/2], or -1."""
        side, (left, right) = self._side // POOL, (margin // POOL for margin in self._margins)
        step = self._between // POOL
        grids = [(side, side), (tiling[0] * step + left + right, tiling[1] * step + left + right)]
        tokens: list[int] = []
        rasters: list[np.ndarray] = []
        for rows, columns in grids:
            raster = np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)
            rasters.append(raster + len(tokens) + 1)
            line = [self._ids[PATCH]] * columns + [self._ids[COLUMN]]
            tokens += [self._ids[START], *line * rows, self._ids[END]]
        places = [rasters[0]]
        for row in range(tiling[0]):
            for column in range(tiling[1]):
                y, x = row * step, column * step
                own = rasters[1][y : y + side, x : x + side].copy()
                if row:
                    own[:left] = -1
                if row + 1 < tiling[0]:
                    own[side - right :] = -1
                if column:
                    own[:, :left] = -1
                if column + 1 < tiling[1]:
                    own[:, side - right :] = -1
                places.append(own)
        return np.array(tokens, np.int64), np.stack(places).reshape(len(places), -1).astype(np.int64)


def choose_tiling(height: int, width: int, side: int, most: int) -> tuple[int, int]:
    """(rows, columns) of at most `most` squares of `side` pixels for an area of height x width pixels, which margins
    leave and may be nothing: that which enlarges it least, or where it must be shrunk, that which shrinks it least; of
    several alike the smallest.
    """
    tilings = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    tilings.sort(key=lambda tiling: (tiling[0] * tiling[1], tiling[0]))
    with np.errstate(divide="ignore"):
        scales = (np.array(tilings) * side).astype(np.float32) / np.array([height, width], np.float32)
    scale = scales.min(-1)
    best = scale.argmax() if (scale < 1).all() else np.where(scale < 1, np.float32(1e10), scale).argmin()
    return tilings[int(best)]


def _patches(pixels: np.ndarray, side: int) -> np.ndarray:
    """[h, w, C] -> [patches, side*side*C], patches and their pixels row by row."""
    rows, columns, channels = pixels.shape[0] // side, pixels.shape[1] // side, pixels.shape[2]
    cut = pixels.reshape(rows, side, columns, side, channels).transpose(0, 2, 1, 3, 4)
    return cut.reshape(rows * columns, side * side * channels)


def _batch(inputs: dict[str, np.ndarray]) -> "dict[str, Tensor]":
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(value))[None] for name, value in inputs.items()}


def _number(file: Path, settings: dict, key: str, default: int, most: int, least: int = 1) -> int:
    value = settings.get(key, default)
    if type(value) is not int or not least <= value <= most:
        raise QuantError(
            f"{file}: {key} is {value!r:.40}, a whole number from {least} to {most} was expected; fetch the processor's"
            " files again"
        )
    return value


def _pair(file: Path, settings: dict, key: str, default: tuple[int, int], most: int, least: int = 1) -> tuple[int, int]:
    value = settings.get(key, default)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise QuantError(
            f"{file}: {key} is {value!r:.40}, two numbers were expected; fetch the processor's files again"
        )
    first, second = (_number(file, {key: number}, key, 0, most, least) for number in value)
    return first, second
