"""Drawn text images with questions and answers, from a seed: what the two example models were trained on and are scored
on.

An image is 112 x 56 pixels: 2 to 4 characters, digits and ten capitals, anywhere in the frame, in one of seven fonts,
26 to 40 pixels high, with tracking, a tilt, a baseline that wobbles, one of six named colours (shaded) on a background
that contrasts, a brightness ramp, blur and Gaussian noise. Five questions are asked about it (QUESTIONS).

Sample `index` of `seed` depends on nothing else, so a training set and an evaluation set never share an image if their
seeds differ. Fonts come with PyPI packages, so that a fresh clone draws the same: Aileron (inside Pillow; CC0), Caladea
(font-caladea; Apache 2.0), Lato (font-lato; OFL 1.1), Fredoka One (font-fredoka-one; OFL 1.1). Pixels are pinned by the
versions of Pillow (which holds FreeType) and numpy; another version may shift an anti-aliased edge.

    python examples/data.py OUT --count 500 --seed 1     # OUT/000000.png ..., OUT/questions.jsonl for quant evaluate
"""

import argparse
import importlib.util
import json
import random
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WIDTH, HEIGHT = 112, 56
ALPHABET = "0123456789AEHKLMPTXY"
SHORTEST, LONGEST = 2, 4
COLOURS = {
    "red": (205, 30, 35),
    "green": (30, 140, 50),
    "blue": (35, 60, 205),
    "yellow": (245, 215, 35),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
}
QUESTIONS = (  # prompt, answer of (text, colour)
    ("What is written?", lambda text, colour: text),
    ("What is the first character?", lambda text, colour: text[0]),
    ("What is the last character?", lambda text, colour: text[-1]),
    ("How many characters?", lambda text, colour: str(len(text))),
    ("What colour is the text?", lambda text, colour: colour),
)
FONTS = (  # (package, file); Pillow's own has no package
    (None, "Aileron"),
    ("font_caladea", "Caladea-Regular.ttf"),
    ("font_caladea", "Caladea-Bold.ttf"),
    ("font_lato", "Lato-Regular.ttf"),
    ("font_lato", "Lato-Bold.ttf"),
    ("font_lato", "Lato-Black.ttf"),
    ("font_fredoka_one", "FredokaOne-Regular.ttf"),
)


@dataclass(frozen=True)
class Sample:
    """One drawn image. `spans` holds each character's (left, right) in pixels, as drawn before the tilt."""

    image: Image.Image  # RGB, WIDTH x HEIGHT
    text: str
    colour: str
    spans: tuple[tuple[float, float], ...]


@cache
def load_font(package: str | None, file: str, size: int) -> ImageFont.FreeTypeFont:
    """A font at `size` pixels. Raises SystemExit, naming the package to install, if it is not there."""
    if package is None:
        return ImageFont.load_default(size)
    spec = importlib.util.find_spec(package)
    if spec is None:
        name = package.replace("_", "-")
        raise SystemExit(f"font {file} is in the package {name}, which is not installed: pip install {name}")
    return ImageFont.truetype(Path(spec.origin).parent / "files" / file, size)


def luminance(rgb) -> float:
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def background(rng: random.Random, ink: tuple[int, ...]) -> tuple[int, ...]:
    """A greyish colour at least 75 of 255 away from the ink in luminance."""
    while True:
        grey = rng.randint(0, 255)
        paper = tuple(min(255, max(0, grey + rng.randint(-25, 25))) for _ in range(3))
        if abs(luminance(paper) - luminance(ink)) >= 75:
            return paper


def draw(seed: int, index: int) -> Sample:
    """Sample `index` of the endless set `seed`."""
    rng = random.Random(f"{seed}/{index}")
    text = "".join(rng.choice(ALPHABET) for _ in range(rng.randint(SHORTEST, LONGEST)))
    colour = rng.choice(list(COLOURS))
    ink = tuple(min(255, max(0, value + rng.randint(-20, 20))) for value in COLOURS[colour])
    paper = background(rng, ink)

    package, file = rng.choice(FONTS)
    tracking, size = rng.uniform(0.5, 4), rng.randint(26, 40)
    while True:  # the largest size, from the one drawn downward, that fits the frame
        font = load_font(package, file, size)
        widths = [font.getlength(character) + tracking for character in text]
        if sum(widths) <= WIDTH - 6:
            break
        size -= 1
    left = rng.uniform(3, WIDTH - 3 - sum(widths))
    middle = rng.uniform(0.36 * size + 3, HEIGHT - 3 - 0.36 * size)  # capitals are about 0.72 of the size high

    mask, spans = Image.new("L", (WIDTH, HEIGHT), 0), []
    pen = ImageDraw.Draw(mask)
    for character, width in zip(text, widths):
        baseline = middle + 0.36 * size + rng.uniform(-1.5, 1.5)
        pen.text((left, baseline), character, fill=255, font=font, anchor="ls")
        spans.append((left, left + width))
        left += width
    mask = mask.rotate(rng.uniform(-4, 4), Image.Resampling.BILINEAR, center=(WIDTH / 2, middle))
    if rng.random() < 0.3:
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))

    noise = np.random.default_rng(rng.getrandbits(64))
    cover = np.asarray(mask, np.float32)[..., None] / 255  # [H, W, 1]
    pixels = cover * np.float32(ink) + (1 - cover) * np.float32(paper)  # [H, W, 3]
    ramp = np.linspace(-1, 1, WIDTH, dtype=np.float32)[None, :, None]
    pixels = pixels + rng.uniform(-18, 18) * ramp + rng.uniform(0, 12) * noise.standard_normal(pixels.shape, np.float32)
    image = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    return Sample(image, text, colour, tuple(spans))


def write_set(folder: Path, count: int, seed: int) -> Path:
    """`count` images as PNG and questions.jsonl, image i asked question i mod 5. Returns the path of the JSONL.

    Raises FileExistsError if the folder already holds a questions.jsonl.
    """
    listing = folder / "questions.jsonl"
    if listing.exists():
        raise FileExistsError(f"{listing} exists: choose an empty folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        sample, (prompt, answer) = draw(seed, index), QUESTIONS[index % len(QUESTIONS)]
        name = f"{index:06d}.png"
        sample.image.save(folder / name)
        rows.append(
            {"image": name, "prompt": prompt, "answers": [answer(sample.text, sample.colour)], "category": prompt}
        )
    listing.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return listing


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a seeded evaluation set: PNG files and questions.jsonl.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1, help="the models were trained on seed 0")
    args = parser.parse_args()
    try:
        print(write_set(args.out, args.count, args.seed))
    except FileExistsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
