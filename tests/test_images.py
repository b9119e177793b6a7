"""images: every mode becomes the right RGB, bad input is named, and the samples depend on content alone."""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quant.base.errors import QuantError, UsageError
from quant.inputs import images
from quant.inputs.images import load_samples, open_image

PHOTOS = Path(__file__).resolve().parent.parent / "calibImages"


def pixels(path):
    return np.asarray(open_image(path)).astype(int)  # [H,W,3]


def noise(seed, size=(20, 12)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def folder_of(tmp_path, names):
    for index, name in enumerate(names):
        noise(index).save(tmp_path / name)
    return tmp_path


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


# ---- a folder


def test_folder_reports_what_it_skips(tmp_path):
    folder_of(tmp_path, ["a.PNG", "b.JPeG", "c.webp", "d.bmp"])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (tmp_path / "more").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    samples, notices = load_samples(tmp_path, "Describe", None, 0)
    assert {s.images[0].name for s in samples} == {"a.PNG", "b.JPeG", "c.webp", "d.bmp"}
    assert [notice.split(":")[0] for notice in notices] == [
        "skipped broken.jpg", "skipped gone.png", "skipped more", "skipped what is no image by its name"]  # fmt: skip


def test_key_is_the_content(tmp_path):
    folder_of(tmp_path, ["a.png"])
    (sample,), _ = load_samples(tmp_path, "Was ist das? 图", None, 0)
    assert (
        sample.key == hashlib.sha256((tmp_path / "a.png").read_bytes() + b"\0" + "Was ist das? 图".encode()).hexdigest()
    )


def test_names_and_order_do_not_matter(tmp_path):
    names = [f"{i}.png" for i in range(9)]
    folder_of(tmp_path, names)
    other = tmp_path / "other"
    other.mkdir()
    for name, new in zip(names, random.Random(1).sample(names, 9)):
        shutil.copy(tmp_path / name, other / f"z{new}")
    for count in (None, 4):
        here, _ = load_samples(tmp_path, "p", count, 7)
        there, _ = load_samples(other, "p", count, 7)
        assert [s.key for s in here] == [s.key for s in there] == sorted(s.key for s in here)
        assert [s.images[0].read_bytes() for s in here] == [s.images[0].read_bytes() for s in there]


def test_choice_depends_on_the_seed_and_says_so(tmp_path):
    folder_of(tmp_path, [f"{i}.png" for i in range(12)])
    picks = {seed: load_samples(tmp_path, "p", 4, seed) for seed in range(6)}
    assert all(len(samples) == 4 and "using 4 of 12 images" in notices[-1] for samples, notices in picks.values())
    assert len({tuple(sample.key for sample in samples) for samples, _ in picks.values()}) > 1
    assert load_samples(tmp_path, "p", 4, 3) == picks[3]
    samples, notices = load_samples(tmp_path, "p", 50, 0)
    assert len(samples) == 12 and "50" in notices[-1] and "12" in notices[-1]


def test_duplicates_count_once(tmp_path):
    folder_of(tmp_path, ["a.png", "c.png"])
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    samples, notices = load_samples(tmp_path, "p", None, 0)
    assert len(samples) == 2 and {s.images[0].name for s in samples} == {"a.png", "c.png"}
    assert notices == ["b.png: the same image and prompt as a.png, counted once"]


def test_of_several_prompts_the_image_chooses(tmp_path):
    folder_of(tmp_path, [f"{index}.png" for index in range(12)])
    samples, _ = load_samples(tmp_path, ("one", "two"), None, 0)
    assert {sample.prompt for sample in samples} == {"one", "two"}
    asked = {sample.images[0].read_bytes(): sample.prompt for sample in samples}
    (tmp_path / "0.png").rename(tmp_path / "z.png")  # the name does not choose, nor what else is there
    (tmp_path / "1.png").unlink()
    again, _ = load_samples(tmp_path, ("one", "two"), None, 0)
    assert all(asked[sample.images[0].read_bytes()] == sample.prompt for sample in again)
    file = tmp_path / "calib.jsonl"
    file.write_text('{"image": "z.png"}\n{"image": "2.png", "prompt": "own"}')
    found = {sample.images[0].name: sample.prompt for sample in load_samples(file, ("one", "two"), None, 0)[0]}
    assert found == {"z.png": asked[(tmp_path / "z.png").read_bytes()], "2.png": "own"}


@pytest.mark.parametrize(
    "fill", [lambda d: None, lambda d: (d / "a.txt").write_text("x"), lambda d: (d / "a.png").write_text("x")]
)
def test_no_usable_image(tmp_path, fill):
    fill(tmp_path)
    with pytest.raises(UsageError, match="no usable image"):
        load_samples(tmp_path, "p", None, 0)


def test_bad_sources(tmp_path):
    folder_of(tmp_path, ["a.png"])
    for source, match in [("missing", "no such folder"), ("a.png", "neither"), ("x" * 300, "no such folder")]:
        with pytest.raises(UsageError, match=match):
            load_samples(tmp_path / source, "p", None, 0)
    with pytest.raises(UsageError, match="num_samples is 0"):
        load_samples(tmp_path, "p", 0, 0)


# ---- a JSONL


def jsonl(tmp_path, *rows):
    folder_of(tmp_path, ["a.png", "b.png"])
    file = tmp_path / "calib.jsonl"
    file.write_bytes(
        b"\n".join(row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows)
    )
    return file


def test_jsonl_with_prompts(tmp_path):
    rows = [{"image": "a.png", "prompt": "读出文字"}, {"image": "b.png"}, b"", {"image": "a.png"}, b"\r"]
    file = jsonl(tmp_path, *rows)
    samples, notices = load_samples(file, "default", None, 0)
    assert {(s.images[0].name, s.prompt) for s in samples} == {
        ("a.png", "读出文字"),
        ("b.png", "default"),
        ("a.png", "default"),
    }
    assert notices == []
    file.write_bytes(
        b"\xef\xbb\xbf" + b"\n".join(file.read_bytes().split(b"\n")[::-1])
    )  # a byte order mark, and the other order
    assert load_samples(file, "default", None, 0)[0] == samples


@pytest.mark.parametrize(
    "row, match",
    [
        (b"{", "not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        ([1], "expected an object"),
        ({"prompt": "x"}, '"image" must be'),
        ({"image": ["a.png"]}, '"image" must be'),
        ({"image": "a.png", "prompt": 3}, '"prompt" must be text'),
        (rb'{"image": "a.png", "prompt": "\ud800"}', "surrogate"),
        ({"image": "a.png", "promt": "x"}, 'unknown key "promt"'),
        ({"image": "none.png"}, "none.png: no such file"),
        ({"image": "."}, "not a regular file"),
        ({"image": "calib.jsonl"}, "not a PNG"),
        ({"image": "../a.png"}, "leaves the folder"),
        ({"image": "sub/../../a.png"}, "leaves the folder"),
        ({"image": "link.png"}, "leaves the folder"),
        ({"image": "/etc/hostname"}, "absolute"),
        ({"image": "a\0.png"}, "image|no such file"),
        ({"image": "x" * 300}, "no such file"),
    ],
)
def test_jsonl_errors_name_file_and_line(tmp_path, row, match):
    folder_of(tmp_path, ["a.png"])
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link.png").symlink_to("../a.png")
    file = jsonl(inner, {"image": "a.png"}, b"", row)
    with pytest.raises(UsageError, match=match) as caught:
        load_samples(file, "p", None, 0)
    assert str(caught.value).startswith(f"{file}:3: ") and "\n" not in str(caught.value)


def test_jsonl_links_inside_the_folder_are_fine(tmp_path):
    file = jsonl(tmp_path, {"image": "sub/../link.png"})
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.png").symlink_to("a.png")
    assert len(load_samples(file, "p", None, 0)[0]) == 1


# ---- what the repository ships


def test_shipped_photographs():
    samples, notices = load_samples(PHOTOS, "p", None, 0)
    assert len(samples) >= 8
    assert notices == ["skipped what is no image by its name: SOURCES.md, coco30.json"]
    table = (PHOTOS / "SOURCES.md").read_text()
    assert sum(s.images[0].stat().st_size for s in samples) < 1_000_000
    for sample in samples:
        assert max(Image.open(sample.images[0]).size) <= 640
        assert table.count(f"| {sample.images[0].name} |") == 1


def test_shipped_coco_list_is_attribution_licensed():
    rows = json.loads((PHOTOS / "coco30.json").read_text())
    assert len({row["id"] for row in rows}) == 30
    assert {row["license"] for row in rows} == {4}  # COCO's number for CC BY 2.0
    assert all(
        row["coco_url"].endswith(row["file_name"]) and row["flickr_url"] and row["width"] and row["height"]
        for row in rows
    )
