"""Lines and pages as a camera or a scanner would bring them, with labels in PaddleOCR's formats: several fonts, Chinese
and Latin text, plain, graded, grained and photographed backgrounds, perspective, rotation, blur, noise, JPEG.

    python examples/ocr/draw.py DIR --task rec --count 500 --seed 1 --fonts FONTS

    rec      lines             labels.txt: file <tab> text
    det      pages             labels.txt: file <tab> JSON, a list of {"transcription", "points": four corners}
    cls      lines             labels.txt: file <tab> 0 or 180, as the line classifier has it
    orientation  pages         labels.txt: file <tab> 0, 90, 180 or 270
    table    tables            labels.jsonl: {"filename", "html": {"structure": {"tokens"}, "cells": [{"bbox"}]}}

The same seed draws the same bytes (with the same Pillow and OpenCV). FONTS is what wheels.py unpacked.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from random import Random

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent))

import tables  # noqa: E402
import text as writing  # noqa: E402

PHOTOS = Path(__file__).resolve().parents[2] / "calibImages"
TASKS = ("rec", "det", "cls", "orientation", "table")


@dataclass(frozen=True)
class Fonts:
    """chinese: files that have both scripts; latin: files that have Latin letters only."""

    chinese: tuple[str, ...]
    latin: tuple[str, ...]

    @classmethod
    def read(cls, folder: str | Path) -> "Fonts":
        """From wheels.py's folder, and from the packages font-*. Raises SystemExit where there are none."""
        from font_caladea import Caladea, CaladeaBold
        from font_fredoka_one import FredokaOne
        from font_lato import Lato, LatoBold, LatoItalic

        chinese = sorted(str(file) for file in Path(folder).glob("*.otf"))
        if not chinese:
            sys.exit(f"{folder}: no fonts; python examples/ocr/wheels.py {folder} brings them")
        return cls(tuple(chinese), (Caladea, CaladeaBold, FredokaOne, Lato, LatoBold, LatoItalic))


@lru_cache(maxsize=64)
def font(file: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of a size in pixels; kept, since opening one of 20 MB takes a while."""
    return ImageFont.truetype(file, size)


@cache
def _photos() -> list[np.ndarray]:
    return [cv2.imread(str(file)) for file in sorted(PHOTOS.glob("*.jpg"))]


def background(random: Random, height: int, width: int, busy: float = 0.25) -> np.ndarray:
    """uint8 [height, width, 3], light; with the probability `busy` a pale part of a photograph."""
    light = [random.randint(190, 255) for _ in range(3)]
    page = np.full((height, width, 3), light, np.float32)
    kind = random.random()
    if kind < busy:
        photo = random.choice(_photos())
        rows, columns = min(height, photo.shape[0]), min(width, photo.shape[1])
        top, left = random.randint(0, photo.shape[0] - rows), random.randint(0, photo.shape[1] - columns)
        part = cv2.resize(photo[top : top + rows, left : left + columns], (width, height)).astype(np.float32)
        page = page * 0.75 + part * 0.25
    elif kind < busy + 0.25:
        page *= np.linspace(random.uniform(0.75, 1), 1, width, dtype=np.float32)[None, :, None]
    elif kind < busy + 0.5:
        page += np.random.default_rng(random.getrandbits(32)).normal(0, 8, page.shape).astype(np.float32)
    return page.clip(0, 255).astype(np.uint8)


def put(page: np.ndarray, random: Random, words: str, file: str, size: int, place: tuple[int, int]) -> list[float]:
    """Write `words` on the page, dark, with the upper left corner of its ink at `place` (x, y): the ink's box."""
    face = font(file, size)
    left, top, right, bottom = face.getbbox(words)
    image = Image.fromarray(page)
    ink = tuple(random.randint(0, 90) for _ in range(3))
    ImageDraw.Draw(image).text((place[0] - left, place[1] - top), words, font=face, fill=ink)
    page[:] = np.asarray(image)
    return [place[0], place[1], place[0] + right - left, place[1] + bottom - top]


def extent(words: str, file: str, size: int) -> tuple[int, int]:
    """(width, height) of the ink."""
    left, top, right, bottom = font(file, size).getbbox(words)
    return right - left, bottom - top


def spoil(image: np.ndarray, random: Random, strength: float = 1.0) -> np.ndarray:
    """Blur, noise, light and JPEG, each by chance."""
    if random.random() < 0.5 * strength:
        image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.4, 1.2))
    if random.random() < 0.5 * strength:
        noise = np.random.default_rng(random.getrandbits(32)).normal(0, random.uniform(2, 12), image.shape)
        image = (image + noise).clip(0, 255).astype(np.uint8)
    if random.random() < 0.4 * strength:
        image = cv2.convertScaleAbs(image, alpha=random.uniform(0.6, 1.0), beta=random.uniform(0, 30))
    if random.random() < 0.5 * strength:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, random.randint(35, 90)])
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return image


def warp(image: np.ndarray, random: Random, turn: float, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotated by up to `turn` degrees and seen from the side by up to `tilt` of its size: (image, matrix [3, 3])."""
    height, width = image.shape[:2]
    spin = cv2.getRotationMatrix2D((width / 2, height / 2), random.uniform(-turn, turn), 1.0)
    corners = np.float32([[0, 0], [width, 0], [width, height], [0, height]])
    moved = corners + np.float32([[random.uniform(-tilt, tilt) * side for side in (width, height)] for _ in range(4)])
    matrix = cv2.getPerspectiveTransform(corners, moved.astype(np.float32)) @ np.vstack([spin, [0, 0, 1]])
    return cv2.warpPerspective(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE), matrix


def draw_line(random: Random, fonts: Fonts) -> tuple[np.ndarray, str]:
    """A cut-out line as detection hands it on, and its text."""
    words, has_chinese = writing.line(random)
    file = random.choice(fonts.chinese if has_chinese else fonts.latin + fonts.chinese)
    size = random.randint(22, 56)
    width, height = extent(words, file, size)
    margin = max(2, round(size * random.uniform(0.08, 0.3)))
    image = background(random, height + 2 * margin, width + 2 * margin, 0.35)
    put(image, random, words, file, size, (margin, margin))
    if random.random() < 0.5:
        image, _ = warp(image, random, 1.0, 0.02)
    if random.random() < 0.15:
        image = 255 - image
    return spoil(image, random), words


def draw_page(random: Random, fonts: Fonts, side: int = 640) -> tuple[np.ndarray, list[dict]]:
    """A page of lines, seen from slightly aside: (image [H, W, 3], labels of its lines)."""
    height, width = random.randint(side * 3 // 4, side), random.randint(side * 3 // 4, side)
    page, found, y = background(random, height, width), [], random.randint(10, 50)
    while True:
        size, x = random.randint(14, 40), random.randint(10, width // 3)
        tallest = 0
        while x < width - 3 * size:
            words, has_chinese = writing.line(random, 10)
            file = random.choice(fonts.chinese if has_chinese else fonts.latin + fonts.chinese)
            wide, tall = extent(words, file, size)
            if x + wide > width - 10 or y + tall > height - 10:
                break
            found.append((words, put(page, random, words, file, size, (x, y))))
            tallest, x = max(tallest, tall), x + wide + random.randint(2 * size, 5 * size)
        y += max(tallest, size) + random.randint(size // 2, 2 * size)
        if y > height - 50:
            break
    matrix = np.eye(3)
    if random.random() < 0.6:
        page, matrix = warp(page, random, 4.0, 0.02)
    labels = []
    for words, (left, top, right, bottom) in found:
        corners = np.float32([[[left, top], [right, top], [right, bottom], [left, bottom]]])
        points = cv2.perspectiveTransform(corners, matrix)[0].round().astype(int)
        labels.append({"transcription": words, "points": points.tolist()})
    return spoil(page, random), labels


def draw(task: str, folder: Path, count: int, seed: int, fonts: Fonts) -> None:
    """`count` images of a task with their labels into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        random, name = Random(f"{task} {seed} {number}"), f"{number:05d}.png"
        if task == "rec":
            image, label = draw_line(random, fonts)
        elif task == "det":
            image, boxes = draw_page(random, fonts)
            label = json.dumps(boxes, ensure_ascii=False)
        elif task == "cls":
            image, _ = draw_line(random, fonts)
            turned = random.random() < 0.5
            image, label = (cv2.rotate(image, cv2.ROTATE_180) if turned else image), "180" if turned else "0"
        elif task == "orientation":
            image, _ = draw_page(random, fonts)
            quarters = random.randrange(4)
            # What the classes of PP-LCNet's orientation mean: how far the page was turned, with the clock.
            image, label = np.ascontiguousarray(np.rot90(image, -quarters)), str(90 * quarters)
        else:
            image, label = tables.draw(random, fonts, background, put, extent, spoil, name)
        cv2.imwrite(str(folder / name), image)
        lines.append(label if task == "table" else f"{name}\t{label}")
    labels = folder / ("labels.jsonl" if task == "table" else "labels.txt")
    labels.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fonts", type=Path, required=True, help="the folder that wheels.py made")
    args = parser.parse_args()
    draw(args.task, args.folder, args.count, args.seed, Fonts.read(args.fonts))


if __name__ == "__main__":
    main()
