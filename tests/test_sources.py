"""sources: what people have for calibration becomes the right samples, whatever its format; what is of no use is named
and skipped; and the samples depend on content alone.
"""

import base64
import csv
import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quant.base.errors import QuantError, UsageError
from quant.inputs import images, video
from quant.inputs.images import ReadError
from quant.inputs.reopen import reopen_images
from quant.inputs.sample import key_of
from quant.inputs.sources import load_samples, load_texts

PHOTOS = Path(__file__).resolve().parent.parent / "calibImages"


def noise(seed, size=(20, 12)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def folder_of(tmp_path, names):
    tmp_path.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        noise(index).save(tmp_path / name)
    return tmp_path


def load(source, prompt="p", num_samples=None, seed=0, **flags):
    """The samples with images, and what the user is told."""
    loaded = load_samples(source, prompt, num_samples, seed, **flags)
    return loaded.samples, loaded.notices


# ---- a folder


def test_folder_reports_what_it_skips(tmp_path):
    folder_of(tmp_path, ["a.PNG", "b.JPeG", "c.webp", "d.bmp"])
    (tmp_path / "more" / "deeper").mkdir(parents=True)
    (tmp_path / "more" / "round").symlink_to(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".DS_Store").write_text("x")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    noise(7).save(tmp_path / "more" / "deeper" / "e.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    samples, notices = load(tmp_path, "Describe", None, 0)
    assert {s.images[0].name for s in samples} == {"a.PNG", "b.JPeG", "c.webp", "d.bmp", "e.png"}
    assert [notice.split(":")[0] for notice in notices] == [
        "skipped broken.jpg", "skipped gone.png", "skipped what is no image by its name"]  # fmt: skip


def test_key_is_the_content(tmp_path):
    folder_of(tmp_path, ["a.png"])
    (sample,), _ = load(tmp_path, "Was ist das? 图", None, 0)
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
        here, _ = load(tmp_path, "p", count, 7)
        there, _ = load(other, "p", count, 7)
        assert [s.key for s in here] == [s.key for s in there] == sorted(s.key for s in here)
        assert [s.images[0].read_bytes() for s in here] == [s.images[0].read_bytes() for s in there]


def test_choice_depends_on_the_seed_and_says_so(tmp_path):
    folder_of(tmp_path, [f"{i}.png" for i in range(12)])
    picks = {seed: load(tmp_path, "p", 4, seed) for seed in range(6)}
    assert all(len(samples) == 4 and "using 4 of 12 images" in notices[-1] for samples, notices in picks.values())
    assert len({tuple(sample.key for sample in samples) for samples, _ in picks.values()}) > 1
    assert load(tmp_path, "p", 4, 3) == picks[3]
    samples, notices = load(tmp_path, "p", 50, 0)
    assert len(samples) == 12 and "50" in notices[-1] and "12" in notices[-1]


def test_duplicates_count_once(tmp_path):
    folder_of(tmp_path, ["a.png", "c.png"])
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    samples, notices = load(tmp_path, "p", None, 0)
    assert len(samples) == 2 and {s.images[0].name for s in samples} == {"a.png", "c.png"}
    assert notices == ["b.png: the same image and prompt as a.png, counted once"]


def test_of_several_prompts_the_image_chooses(tmp_path):
    folder_of(tmp_path, [f"{index}.png" for index in range(12)])
    samples, _ = load(tmp_path, ("one", "two"), None, 0)
    assert {sample.prompt for sample in samples} == {"one", "two"}
    asked = {sample.images[0].read_bytes(): sample.prompt for sample in samples}
    (tmp_path / "0.png").rename(tmp_path / "z.png")  # the name does not choose, nor what else is there
    (tmp_path / "1.png").unlink()
    again, _ = load(tmp_path, ("one", "two"), None, 0)
    assert all(asked[sample.images[0].read_bytes()] == sample.prompt for sample in again)
    file = tmp_path / "calib.jsonl"
    file.write_text('{"image": "z.png"}\n{"image": "2.png", "prompt": "own"}')
    found = {sample.images[0].name: sample.prompt for sample in load(file, ("one", "two"), None, 0)[0]}
    assert found == {"z.png": asked[(tmp_path / "z.png").read_bytes()], "2.png": "own"}


@pytest.mark.parametrize(
    "fill", [lambda d: None, lambda d: (d / "a.txt").write_text("x"), lambda d: (d / "a.png").write_text("x")]
)
def test_no_usable_image(tmp_path, fill):
    fill(tmp_path)
    with pytest.raises(UsageError, match="no usable image"):
        load(tmp_path, "p", None, 0)


def test_bad_sources(tmp_path):
    folder_of(tmp_path, ["a.png"])
    for source, match in [("missing", "no such folder"), ("a.png", "neither"), ("x" * 300, "no such folder")]:
        with pytest.raises(UsageError, match=match):
            load(tmp_path / source, "p", None, 0)
    with pytest.raises(UsageError, match="num_samples is 0"):
        load(tmp_path, "p", 0, 0)


# ---- files of rows


def write(tmp_path, name, *rows):
    """A file of rows beside the images a.png and b.png: lines for .jsonl, one array for .json."""
    folder_of(tmp_path, ["a.png", "b.png"])
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    file = tmp_path / name
    file.write_bytes(b"\n".join(lines) if name.endswith("l") else b"[\n" + b",\n".join(lines) + b"]")
    return file


def read(file, **flags):
    """What was read: {(names of the images, prompt, answer)}."""
    loaded = load_samples(file, "default", None, 0, **flags)
    every = [*loaded.samples, *loaded.texts]
    return {(tuple(Path(str(image)).name for image in each.images), each.prompt, each.answer) for each in every}


def test_jsonl_with_prompts(tmp_path):
    rows = [{"image": "a.png", "prompt": "读出文字"}, {"image": "b.png"}, b"", {"image": "a.png"}, b"\r"]
    file = write(tmp_path, "calib.jsonl", *rows)
    samples, notices = load(file, "default")
    assert {(s.images[0].name, s.prompt) for s in samples} == {
        ("a.png", "读出文字"),
        ("b.png", "default"),
        ("a.png", "default"),
    }
    assert notices == []
    file.write_bytes(
        b"\xef\xbb\xbf" + b"\n".join(file.read_bytes().split(b"\n")[::-1])
    )  # a byte order mark, and the other order
    assert load(file, "default")[0] == samples


LLAVA = [
    {"from": "human", "value": "<image>\nWhat is it?"},
    {"from": "gpt", "value": "A cat."},
    {"from": "human", "value": "Really?"},
    {"from": "gpt", "value": "Yes."},
]


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"image": "a.png", "question": "Q", "answer": "A"}, (("a.png",), "Q", "A")),
        ({"image": "a.png", "prompt": "Q", "answers": ["A", "B"]}, (("a.png",), "Q", "A")),
        ({"image": "a.png", "prompt": "Q", "answers": "A"}, (("a.png",), "Q", "A")),
        ({"image": "a.png", "prompt": None, "answer": None}, (("a.png",), "default", "")),
        ({"file_name": "a.png", "text": "a caption"}, (("a.png",), "default", "a caption")),
        ({"image_path": "a.png"}, (("a.png",), "default", "")),
        ({"images": ["a.png", "b.png"], "prompt": "Q"}, (("a.png", "b.png"), "Q", "")),
        ({"images": ["a.png"]}, (("a.png",), "default", "")),
        ({"id": "0", "image": "a.png", "conversations": LLAVA}, (("a.png",), "What is it?", "A cat.")),
        ({"id": "1", "conversations": LLAVA[2:]}, ((), "Really?", "Yes.")),
        ({"image": "a.png", "conversations": LLAVA[:1]}, (("a.png",), "What is it?", "")),
        ({"text": "A passage."}, ((), None, "A passage.")),
        ({"prompt": "Q", "answer": "A"}, ((), "Q", "A")),
        ({"prompt": "Q", "text": "A"}, ((), "Q", "A")),
    ],
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_rows_as_people_have_them(tmp_path, row, expected, name):
    assert read(write(tmp_path, name, row)) == {expected}


def test_ocrbench_tsv(tmp_path):
    """Images in base64, or by the index of another row; an answer that is a list as text."""
    folder_of(tmp_path, ["a.png", "b.png"])
    first, second = (base64.b64encode((tmp_path / name).read_bytes()).decode() for name in ("a.png", "b.png"))
    rows = [
        ["index", "image", "question", "answer", "category", "split"],
        ["0", first, "what is written?", "['CENTRE', 'Centre']", "any", "x"],
        ["1", "0", "how many words?", "one", "any", "x"],
        ["2", second, "line\nbreak?", "yes", "any", "x"],
        ["3", "7", "no image", "no", "any", "x"],
        ["4", "short"],
    ]
    file = tmp_path / "data.tsv"
    with open(file, "w", newline="") as stream:
        csv.writer(stream, delimiter="\t").writerows(rows)
    loaded = load_samples(file, "p", None, 0)
    assert {(each.name, each.prompt, each.answer) for each in loaded.samples} == {
        ("data.tsv:2", "what is written?", "CENTRE"),
        ("data.tsv:3", "how many words?", "one"),
        ("data.tsv:4", "line\nbreak?", "yes"),
    }
    by_file = write(tmp_path, "data.jsonl", {"image": "a.png", "prompt": "how many words?", "answer": "one"})
    assert load(by_file)[0][0].key in {each.key for each in loaded.samples}, "a sample is its content"
    assert loaded.skipped == 2 and "data.tsv:6: image is neither base64" in loaded.notices[0]
    assert "data.tsv:7: 2 fields, the first line has 6" in loaded.notices[1]
    assert "split" in loaded.notices[-1]


@pytest.mark.parametrize("name", ["calibration.jsonl", "metadata.jsonl"])
def test_a_folder_with_a_list(tmp_path, name):
    """It says what to take, and that is said; without text, calibration.jsonl says no more than which images."""
    write(tmp_path, name, {"file_name": "a.png", "prompt": "own", "text": "seen"}, {"text": "A passage."})
    assert read(tmp_path) == {(("a.png",), "own", "seen"), ((), None, "A passage.")}
    assert load(tmp_path)[1] == [f"{tmp_path}: takes what is in its {name}"]
    alone = {(("a.png",), "default", "")}
    assert read(tmp_path, pictures_only=True) == (alone if name.startswith("c") else read(tmp_path))


def test_keys_that_do_not_count_are_named(tmp_path):
    file = write(tmp_path, "x.jsonl", {"image": "a.png", "promt": "x", "id": 3}, {"image": "b.png", "id": 4})
    samples, notices = load(file)
    assert {sample.prompt for sample in samples} == {"p"} and notices == ["x.jsonl: not used: id, promt"]


BAD = [
    (b"{", "not JSON"),
    (b"\xff{}", "not UTF-8"),
    (b"[" * 100_000, "not JSON"),
    ([1], "expected an object"),
    ({"prompt": "x"}, "neither an image"),
    ({"text": ""}, "neither an image"),
    ({}, "neither an image"),
    ({"image": ["a.png"]}, '"image" must be'),
    ({"image": ""}, '"image" must be'),
    ({"images": "a.png"}, '"images" must be'),
    ({"images": []}, '"images" must be'),
    ({"image": "a.png", "prompt": 3}, '"prompt" must be text'),
    ({"image": "a.png", "answer": 3}, '"answer" must be a text'),
    ({"image": "a.png", "answers": [3]}, '"answer" must be a text'),
    ({"text": ["x"]}, '"text" must be text'),
    ({"image": "a.png", "conversations": [{"value": "x"}]}, '"conversations" must be'),
    ({"image": "a.png", "conversations": LLAVA[1:2]}, '"conversations" must be'),
    ({"image": "a.png", "conversations": "x"}, '"conversations" must be'),
    (rb'{"image": "a.png", "prompt": "\ud800"}', "surrogate"),
    (rb'{"text": "\ud800"}', "surrogate"),
    ({"image": "none.png"}, "none.png: no such file"),
    ({"images": ["a.png", "none.png"]}, "none.png: no such file"),
    ({"image": "."}, "not a regular file"),
    ({"image": "calib.jsonl"}, "not a PNG"),
    ({"image": "a\0.png"}, "image|no such file"),
    ({"image": "x" * 300}, "no such file"),
]


@pytest.mark.parametrize("row, match", BAD)
def test_a_bad_line_is_named_and_skipped(tmp_path, row, match):
    file = write(tmp_path, "calib.jsonl", {"image": "a.png"}, b"", row)
    loaded = load_samples(file, "p", None, 0)
    assert len(loaded.samples) == 1 and loaded.skipped == 1
    (notice,) = [each for each in loaded.notices if each.startswith("skipped ")]
    assert notice.startswith(f"skipped {file}:3: ") and "\n" not in notice
    with pytest.raises(UsageError, match=match) as caught:
        load(file, strict=True)
    assert str(caught.value).startswith(f"{file}:3: ") and "\n" not in str(caught.value)
    file.write_bytes(file.read_bytes().split(b"\n")[2])
    with pytest.raises(UsageError, match=f"no usable image.*{match}"):
        load(file)


def test_many_bad_lines_are_counted(tmp_path):
    file = write(tmp_path, "calib.jsonl", {"image": "a.png"}, *({"image": f"{number}.png"} for number in range(30)))
    loaded = load_samples(file, "p", None, 0)
    assert loaded.skipped == 30 and len(loaded.notices) == 11
    assert loaded.notices[-1] == "skipped 20 more; 30 in all"


def test_a_disk_that_fails_is_not_skipped(tmp_path, monkeypatch):
    file = write(tmp_path, "calib.jsonl", {"image": "a.png"}, {"image": "b.png"})

    def fails(path):
        if path.suffix == ".png":
            raise ReadError(f"{path}: cannot be read: Input/output error")
        return path.read_bytes()

    monkeypatch.setattr("quant.inputs.sources.read_bytes", fails)
    for source in (file, tmp_path):
        with pytest.raises(ReadError, match="Input/output error"):
            load(source)


@pytest.mark.parametrize(
    "name, content, match",
    [
        ("x.json", b"{}", "x.json:1: a JSON array"),
        ("x.json", b'[{"image": "a.png"},\n{', "x.json:2: not JSON"),
        ("x.json", b"[]", "no usable image"),
        ("x.jsonl", b"", "no usable image"),
        ("x.tsv", b"index\timage\n", "x.tsv:1: column answer is missing"),
        ("x.txt", b"text", "neither"),
    ],
)
def test_files_that_cannot_be_read_on(tmp_path, name, content, match):
    folder_of(tmp_path, ["a.png"])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=match):
        load(tmp_path / name)


# ---- where images may be


@pytest.fixture
def places(tmp_path):
    """outside/a.png, and a folder `inner` with b.png, a link to outside/a.png, and a link to b.png."""
    folder_of(tmp_path / "outside", ["a.png"])
    noise(5).save(folder_of(tmp_path / "inner", []) / "b.png")
    (tmp_path / "inner" / "out.png").symlink_to("../outside/a.png")
    (tmp_path / "inner" / "in.png").symlink_to("b.png")
    (tmp_path / "inner" / "sub").mkdir()
    return tmp_path


OUTSIDE = ["../outside/a.png", "sub/../../outside/a.png", "out.png", "{root}/outside/a.png"]
INSIDE = ["b.png", "sub/../in.png", "{root}/inner/b.png"]


@pytest.mark.parametrize("name", OUTSIDE + INSIDE)
def test_images_may_be_anywhere_unless_there_is_a_root(places, name):
    file = places / "inner" / "calib.jsonl"
    file.write_text(json.dumps({"image": name.format(root=places)}))
    assert len(load(file)[0]) == 1, "a user's own file is trusted"
    assert len(load(file, root=places)[0]) == 1
    if name in INSIDE:
        assert len(load(file, root=places / "inner")[0]) == 1
    else:
        with pytest.raises(UsageError, match=f"calib.jsonl:1: image .* leaves the folder {places}/inner"):
            load(file, root=places / "inner", strict=True)


def test_a_folders_links_stay_below_the_root(places):
    assert len(load(places / "inner")[0]) == 2
    loaded = load_samples(places / "inner", "p", None, 0, root=places / "inner")
    assert [sample.name for sample in loaded.samples] == ["b.png"] and loaded.skipped == 1
    assert f"leaves the folder {places}/inner" in loaded.notices[0]


# ---- texts


def test_paragraphs_of_a_plain_text(tmp_path):
    file = tmp_path / "book.txt"
    file.write_bytes("\ufeffOne.\r\n\r\nTwo,\r\nand on.\n\n\n\n    indented\n\nOne.\n".encode())
    loaded = load_texts(file, 0)
    assert {(each.answer, each.prompt, each.images) for each in loaded.texts} == {
        ("One.", None, ()),
        ("Two,\nand on.", None, ()),
        ("    indented", None, ()),
    }
    assert {each.name for each in loaded.texts} == {"book.txt:1", "book.txt:3", "book.txt:8"}
    assert loaded.notices == ["book.txt:10: the same text as book.txt:1, counted once"]


def test_texts_of_a_file_of_rows(tmp_path):
    rows = [{"text": "x"}, {"prompt": "Q", "answer": "A"}, {"image": "a.png", "prompt": "Q", "answer": "A"}]
    texts = load_texts(write(tmp_path, "texts.jsonl", *rows), 0).texts
    assert {(each.prompt, each.answer) for each in texts} == {(None, "x"), ("Q", "A")}
    for name, content in (("empty.txt", b"\n\n"), ("one.jsonl", b'{"image": "a.png"}')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="no text"):
            load_texts(tmp_path / name, 0)
    for name in ("a.png", "nowhere.txt", "."):
        with pytest.raises(UsageError, match="texts are read from"):
            load_texts(tmp_path / name, 0)
    (tmp_path / "latin.txt").write_bytes(b"ol\xe9")
    with pytest.raises(UsageError, match="latin.txt:1: not UTF-8"):
        load_texts(tmp_path / "latin.txt", 0)


def test_keys_tell_samples_apart():
    """One image with a prompt has the key it always had; everything that differs differs."""
    assert key_of([b"data"], "p") == key_of([b"data"], "p", "") == hashlib.sha256(b"data\0p").hexdigest()
    keys = [
        key_of(*each)
        for each in (
            ([b"data"], "p"), ([b"data"], "p", "a"), ([b"data"], "pa"), ([b"data"], "p", (1, 2)), ([], "p", "a"),
            ([], None, "a"), ([], None, (1, 2)), ([b"data", b"x"], "p"), ([b"x", b"data"], "p"), ([], "", "a"),
        )
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


# ---- what the repository ships


def shipped(source):
    return load_samples(source, "p", None, 0)


@pytest.mark.parametrize("folder, file", [(PHOTOS, "calibration.jsonl"), (PHOTOS / "heldout", "heldout.jsonl")])
def test_shipped_inputs(folder, file):
    """Every image is in the list, with a prompt and an answer, and its source and licence are in the table."""
    loaded = shipped(folder / file)
    assert loaded.notices == [] and loaded.skipped == 0
    assert {sample.name for sample in loaded.samples} == {
        path.name for path in folder.iterdir() if path.suffix in images.SUFFIXES
    }
    assert all(sample.prompt not in ("", "p") and sample.answer for sample in loaded.samples)
    table = (PHOTOS / "SOURCES.md").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) < 1_000_000
    for sample in loaded.samples:
        assert max(Image.open(sample.images[0]).size) <= 640
        assert table.count(f"| {sample.name} |") == 1
    assert f"`{(folder / file).relative_to(PHOTOS)}`" in table
    assert any(text.is_passage for text in loaded.texts) and any(not text.is_passage for text in loaded.texts)


def test_shipped_texts_cover_the_language():
    """Scripts by their code points; code, mathematics, tables and dialogue by their marks."""
    for source in (PHOTOS / "calibration.jsonl", PHOTOS / "heldout" / "heldout.jsonl"):
        texts = [text.answer for text in shipped(source).texts]
        for low, high in ("一龥", "ЀӿͰϿ"[:2], "؀ۿ", "ऀॿ", "ぁヿ", "가힣", "ͰϿ"):
            assert any(sum(low <= letter <= high for letter in text) > 10 for text in texts), (source, low)
        for mark in ("def ", "$ ", "\\", "|---", '{"', "\n\t" if source.parent != PHOTOS else "#include", " × "):
            assert any(mark in text for text in texts), (source, mark)


def test_held_out_inputs_share_nothing_with_calibration():
    calibration, held = (shipped(file) for file in (PHOTOS / "calibration.jsonl", PHOTOS / "heldout" / "heldout.jsonl"))

    def lines(loaded):
        texts = [text for each in [*loaded.samples, *loaded.texts] for text in (each.prompt or "", each.answer)]
        cut = (piece.strip() for text in texts for piece in text.replace("。", ".\n").replace(". ", ".\n").split("\n"))
        return {piece for piece in cut if len(piece) > 10 and not set(piece) <= set("|-: ")}

    assert not lines(calibration) & lines(held)
    pixels = [{each.images[0].read_bytes() for each in loaded.samples} for loaded in (calibration, held)]
    assert not pixels[0] & pixels[1]


def test_shipped_coco_list_is_attribution_licensed():
    rows = json.loads((PHOTOS / "coco30.json").read_text())
    assert len({row["id"] for row in rows}) == 30
    assert {row["license"] for row in rows} == {4}  # COCO's number for CC BY 2.0
    assert all(
        row["coco_url"].endswith(row["file_name"]) and row["flickr_url"] and row["width"] and row["height"]
        for row in rows
    )


# ---- videos


@pytest.fixture
def shown(tmp_path):
    """Images, a GIF and a folder of frames, which need no PyAV."""
    folder_of(tmp_path, ["a.png", "b.png"])
    noise(0).save(tmp_path / "c.gif", save_all=True, append_images=[noise(1), noise(2)], duration=100)
    folder_of(tmp_path / "frames", ["0.png", "1.png"])
    return tmp_path


def test_rows_with_videos(shown):
    file = shown / "x.jsonl"
    rows = [
        {"video": "c.gif", "prompt": "one", "answer": "A."},
        {"videos": ["c.gif", "frames"]},
        {"images": ["a.png", "b.png"], "video_path": "frames", "conversations": [
            {"from": "human", "value": "<image>\n<video>\nBoth?"}, {"from": "gpt", "value": "B."}]},
    ]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_samples(file, "own", None, 0)
    assert not loaded.notices and not loaded.texts
    found = {sample.prompt: sample for sample in loaded.samples}
    name = lambda paths: [path.name for path in paths]
    assert name(found["one"].videos) == ["c.gif"] and found["one"].images == ()
    assert name(found["own"].videos) == ["c.gif", "frames"] and found["own"].name == "c.gif, frames"
    assert name(found["Both?"].pictures) == ["a.png", "b.png", "frames"] and found["Both?"].answer == "B."
    digests = [video.digest(shown / each) for each in ("c.gif", "frames")]
    content = [[], "own", "", digests]
    assert found["own"].key == hashlib.sha256(json.dumps(content).encode()).hexdigest()
    assert key_of([], "own", "", digests[::-1]) != found["own"].key
    shutil.copytree(shown, shown.parent / "moved")
    again = load_samples(shown.parent / "moved" / "x.jsonl", "own", None, 5).samples
    assert [sample.key for sample in again] == [sample.key for sample in loaded.samples]


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"video": "none.mp4"}, "none.mp4: no such file"),
        ({"video": "broken.gif"}, "broken.gif: cannot be decoded"),
        ({"video": 3}, '"video" must be the path of a video, found 3'),
        ({"videos": []}, '"videos" must be a list of paths, found'),
        ({"video": "void"}, "void: a folder without frames"),
        ({"image": "a.png", "video": "broken.gif"}, "broken.gif: cannot be decoded"),
    ],
)
def test_a_video_of_no_use_is_named_and_skipped(shown, row, reason):
    (shown / "broken.gif").write_bytes((shown / "c.gif").read_bytes()[:30])
    (shown / "void").mkdir()
    file = shown / "x.jsonl"
    file.write_text(json.dumps({"video": "c.gif"}) + "\n" + json.dumps(row))
    samples, notices = load(file)
    assert len(samples) == 1 and len(notices) == 1
    assert notices[0].startswith(f"skipped {file}:2: {reason}"), notices
    with pytest.raises(UsageError, match="x.jsonl:2: .*without --strict it is skipped"):
        load(file, strict=True)


def test_videos_stay_below_the_root(shown):
    inner = shown / "inner"
    inner.mkdir()
    (inner / "link.gif").symlink_to(shown / "c.gif")
    folder_of(inner / "frames", ["0.png"])
    (inner / "frames" / "1.png").symlink_to(shown / "a.png")
    shutil.copy(shown / "c.gif", inner / "own.gif")
    file = inner / "x.jsonl"
    for name, what in (
        ("link.gif", "video"),
        ("../c.gif", "video"),
        (str(shown / "c.gif"), "video"),
        ("frames", "frame"),
    ):
        file.write_text(json.dumps({"video": name}) + "\n" + json.dumps({"video": "own.gif"}))
        assert len(load(file)[0]) >= 1
        samples, notices = load(file, root=inner)
        assert [sample.videos[0].name for sample in samples] == ["own.gif"]
        assert f"x.jsonl:1: {what} " in notices[0] and f"leaves the folder {inner}" in notices[0]


def test_a_video_that_changes_is_found_out(shown):
    (shown / "x.jsonl").write_text(json.dumps({"video": "frames", "prompt": "p"}))
    (sample,), _ = load(shown / "x.jsonl")
    assert reopen_images(sample) == []
    noise(9).save(shown / "frames" / "1.png")
    with pytest.raises(QuantError, match="frames: changed since it was checked"):
        reopen_images(sample)
