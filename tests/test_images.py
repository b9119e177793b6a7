"""images: every mode becomes the right RGB, and bad input is named."""

import os

import numpy as np
import pytest
from PIL import Image

from quant.base.errors import QuantError
from quant.inputs import images
from quant.inputs.images import open_image


def pixels(path):
    return np.asarray(open_image(path)).astype(int)  # [H,W,3]


def noise(seed, size=(20, 12)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


# ---- open_image


@pytest.mark.parametrize("mode, suffix", [(m, s) for m in ("1", "L", "P", "RGB") for s in ("png", "bmp")])
def test_lossless_modes_keep_their_colours(tmp_path, mode, suffix):
    image = noise(0).convert(mode)
    image.save(tmp_path / f"x.{suffix}")
    opened = open_image(tmp_path / f"x.{suffix}")
    assert opened.mode == "RGB"
    assert np.array_equal(np.asarray(opened), np.asarray(image.convert("RGB")))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(4, 256)
    Image.fromarray(values).save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").mode.startswith("I")
    assert np.array_equal(pixels(tmp_path / "x.png")[..., 1], np.floor(values / 257 + 0.5))


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_alpha_is_laid_on_white(tmp_path, suffix):
    image = Image.new("RGBA", (6, 2), (200, 0, 100, 255))
    image.paste((200, 0, 100, 0), (0, 0, 2, 2))
    image.paste((200, 0, 100, 51), (2, 0, 4, 2))  # one fifth opaque
    image.save(tmp_path / f"x.{suffix}", **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    row = pixels(tmp_path / f"x.{suffix}")[0]
    assert (row[0] == [255, 255, 255]).all() and (row[5] == [200, 0, 100]).all()
    assert np.abs(row[2] - [244, 204, 224]).max() <= 1  # 255 - (255 - colour) / 5


def test_grey_alpha_palette_and_transparent_colour(tmp_path):
    grey = Image.new("LA", (2, 1), (40, 255))
    grey.putpixel((0, 0), (40, 0))
    grey.save(tmp_path / "la.png")
    assert pixels(tmp_path / "la.png")[0].tolist() == [[255] * 3, [40] * 3]

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert pixels(tmp_path / "p.png")[0].tolist() == [[255] * 3, [40, 50, 60]]

    plain = Image.new("RGB", (2, 1), (1, 2, 3))
    plain.putpixel((1, 0), (4, 5, 6))
    plain.save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    assert pixels(tmp_path / "rgb.png")[0].tolist() == [[255] * 3, [4, 5, 6]]


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "x.jpg", quality=95)  # cyan
    assert Image.open(tmp_path / "x.jpg").mode == "CMYK"
    assert np.abs(pixels(tmp_path / "x.jpg")[4, 4] - [0, 255, 255]).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = np.asarray(noise(3, (5, 4)))
    stored = {  # what a camera writes so that the viewer's turn restores `upright`
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(pixels(tmp_path / "x.png"), upright)


def test_damaged_exif_does_not_cost_the_image(tmp_path):
    noise(1).save(tmp_path / "x.png", exif=b"Exif\0\0not a TIFF header at all")
    assert np.array_equal(pixels(tmp_path / "x.png"), np.asarray(noise(1)))


@pytest.mark.parametrize("suffix", images.SUFFIXES)
def test_truncated_is_one_line(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    noise(0, (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(QuantError, match="cannot be decoded") as caught:
        open_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_not_an_image(tmp_path):
    for name, content in {"text.png": b"hello", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(QuantError, match=f"{name}: not a PNG"):
            open_image(tmp_path / name)
    noise(0).save(tmp_path / "gif.png", format="GIF")
    with pytest.raises(QuantError, match="gif.png: not a PNG"):
        open_image(tmp_path / "gif.png")
    with pytest.raises(QuantError, match="no such file"):
        open_image(tmp_path / "none.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(QuantError, match="not a regular file"):  # and does not wait for a writer
        open_image(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    "limit", [239, 100]
)  # 240 pixels: above the limit (a warning of Pillow's), above twice the limit (an error)
def test_decompression_bomb(tmp_path, monkeypatch, limit):
    noise(0).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(QuantError, match="240") as caught:
        open_image(tmp_path / "x.png")
    assert "\n" not in str(caught.value)
