"""Text beside the images, from a file to the bytes: what is taken of it, that it changes the language tower alone, and
what the user is told; samples of no use, several images, and answers on the same way.
"""

import json

import pytest
import tiny
import torch
from PIL import Image
from test_calibrator import digest

from quant import Calibrator, QuantConfig, UsageError
from quant.base.config import CALIB_IMAGES, HELD_OUT, TEXT_TOKENS
from quant.calibrate.summary import dry_run
from quant.commands.cli import main
from quant.inputs.calibration_set import ANSWER, IMAGE, PROMPT
from quant.inputs.sample import Sample, key_of, passage
from quant.inputs.samples import PASSAGE_TOKENS, prepare
from quant.inputs.sources import load_samples
from quant.verify.verify import verify

FAMILIES = list(tiny.FAMILIES)
ALONE = ("molmo",)  # one image a prompt, and a class that the checkpoint brings


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")

    class World:
        images = tiny.make_images(root / "images", 3)

        def source(self, family):
            place = root / family
            return place if place.exists() else tiny.make(place, family)

    return World()


def rows(file, *lines):
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    return file


def prepared(source, data, **choices):
    calibrator = Calibrator(source, QuantConfig(**{"dev_type": "cpu", "calib_text": "none", **choices}), data)
    calibrator.prepare()
    return calibrator.samples


# ---- what is taken


@pytest.mark.parametrize("family", FAMILIES)
def test_kinds_of_tokens(world, tmp_path, family):
    """The parts of every sample, in the order of its tokens; they are also what the recipe counts."""
    names = sorted(path.name for path in world.images.iterdir())
    made = [{"image": names[0], "prompt": "one"}, {"image": names[1], "prompt": "two", "answer": "A cat."}]
    made += [
        {"images": names[2:] if family in ALONE else names[:2], "answer": "Two."},
        {"prompt": "three", "answer": "3"},
        {"text": "Four. 四"},
    ]
    for name in names:
        (tmp_path / name).symlink_to(world.images / name)
    samples = prepared(world.source(family), rows(tmp_path / "x.jsonl", *made))
    assert samples.names == [*samples.names[:3], *samples.names[3:]] and samples.texts == 2
    assert all(name.startswith("x.jsonl:") for name in samples.names[3:]), "those without images are the last"
    seen = {}
    for number, inputs in enumerate(samples.inputs):
        kinds, ids = samples.kinds(number), inputs["input_ids"][0]
        assert kinds.dtype == torch.uint8 and kinds.shape == ids.shape
        assert torch.equal(kinds == IMAGE, ids == samples.image_token_id)
        answer = (kinds == ANSWER).nonzero().flatten()
        assert len(answer) == 0 or int(answer[-1]) == len(ids) - 1 and int(answer[0]) == len(ids) - len(answer)
        parts = tuple(int((kinds == kind).sum()) for kind in (IMAGE, PROMPT, ANSWER))
        seen[samples.names[number]] = tuple(part > 0 for part in parts)
        asked = samples.asked(number)
        assert samples.unanswered(number) == (parts[ANSWER] == 0)
        assert asked["input_ids"].shape[1] == (len(ids) if parts[PROMPT] == 0 else parts[IMAGE] + parts[PROMPT])
        assert torch.equal(asked["input_ids"][0], ids[: asked["input_ids"].shape[1]]) and asked.keys() == inputs.keys()
    assert sorted(seen.values()) == sorted(
        [(True, True, False), (True, True, True), (True, True, True), (False, True, True), (False, False, True)]
    )
    kinds = torch.cat([samples.kinds(number) for number in range(5)])
    assert samples.counts() == {
        "image": int((kinds == IMAGE).sum()),
        "prompt": int((kinds == PROMPT).sum()),
        "answer": int((kinds == ANSWER).sum()),
    }


def test_kinds_of_what_the_caller_prepared(world):
    """Where an answer begins is not known there; which token is an image's is."""
    of_files = prepared(world.source("qwen2_vl"), world.images)
    given = prepared(world.source("qwen2_vl"), of_files.inputs, calib_text="shipped")
    assert len(given.keys) == len(of_files.keys), "text is not put beside what was prepared"
    assert given.counts() == of_files.counts() and given.counts()["answer"] == 0 < given.counts()["image"]


def test_the_default_of_a_real_tokenizers_size(world):
    """Everything that ships is taken where a tokenizer needs no more than TEXT_TOKENS for it; images come first."""
    samples = prepared(world.source("llava"), None, calib_text="shipped", text_tokens=10**6)
    lines = (CALIB_IMAGES / "calibration.jsonl").read_text().splitlines()
    assert len(samples.keys) == len(lines) and samples.notices == [
        f"{CALIB_IMAGES}: takes what is in its calibration.jsonl"
    ]
    assert samples.texts == sum('"image"' not in line for line in lines)
    pictures = len(lines) - samples.texts
    assert all((samples.kinds(number) == IMAGE).any() for number in range(pictures))
    assert samples.keys[:pictures] == sorted(samples.keys[:pictures])
    assert samples.keys[pictures:] == sorted(samples.keys[pictures:])
    # About 4 bytes a token in a tokenizer of 150,000 words; a byte each here.
    assert sum(len(json.loads(line).get("text", "")) for line in lines) < 3 * TEXT_TOKENS


@pytest.mark.parametrize("most", [5, 40, 1000])
def test_no_more_than_text_tokens(world, tmp_path, most):
    made = [{"text": f"{number}" * 60} for number in range(9)] + [{"text": "long " * 400}]
    file = rows(tmp_path / "t.jsonl", *made)
    samples = prepared(world.source("llava"), world.images, calib_text=str(file), text_tokens=most)
    lengths = [samples.inputs[number]["input_ids"].numel() for number in range(3, len(samples.keys))]
    assert sum(lengths) <= most and (most == 1000 or sum(lengths) == most)
    assert max(lengths) == min(most, PASSAGE_TOKENS if most == 1000 else 61)
    assert any("of 10 texts" in notice for notice in samples.notices)
    if most == 40:
        others = prepared(world.source("llava"), world.images, calib_text=str(file), text_tokens=most, seed=1)
        assert others.keys != samples.keys, "the seed chooses"
        file.write_text("\n".join(file.read_text().splitlines()[::-1]))
        again = prepared(world.source("llava"), world.images, calib_text=str(file), text_tokens=most)
        assert again.keys == samples.keys, "the order does not"


def test_a_users_own_texts_come_first(world, tmp_path):
    image = next(iter(world.images.iterdir()))
    file = rows(tmp_path / "x.jsonl", {"image": str(image)}, *({"text": f"own {number} " * 4} for number in range(4)))
    samples = prepared(world.source("llava"), file, calib_text="shipped", text_tokens=150)
    assert sum(name.startswith("x.jsonl:") for name in samples.names) == 4
    assert sum(name.startswith("calibration.jsonl:") for name in samples.names) >= 1


def test_num_samples_counts_images(world):
    samples = prepared(world.source("llava"), world.images, calib_text="shipped", num_samples=1)
    assert len(samples.keys) - samples.texts == 1 < samples.texts + 1


def test_without_text_the_shipped_photographs_are_plain_images(world):
    samples = prepared(world.source("llava"), None)
    assert samples.texts == 0 and samples.counts()["answer"] == 0
    folder = prepared(world.source("llava"), CALIB_IMAGES)
    assert folder.keys == samples.keys and len(samples.keys) == 13


def test_a_model_that_writes_the_text(world):
    """prepare(write=...): what it answers is taken in the place of all, token ids as they are."""
    calibrator = Calibrator(world.source("qwen2_vl"), QuantConfig(dev_type="cpu"), world.images)

    def write(samples, encoder, tokens):
        assert tokens == calibrator.config.text_tokens
        data = [sample.images[0].read_bytes() for sample in samples]
        answered = [
            Sample(sample.images, sample.prompt, (5, 6, 7), key_of([each], sample.prompt, (5, 6, 7)), sample.name)
            for sample, each in zip(samples, data)
        ]
        return [*answered, passage((8, 9, 10, 11), "written 1")]

    checkpoint, family, config = calibrator.checkpoint, calibrator.family, calibrator.config
    made = prepare(world.images, checkpoint, family, config, write=write)
    assert [inputs["input_ids"][0, -3:].tolist() for inputs in made.inputs] == [[5, 6, 7]] * 3 + [[9, 10, 11]]
    assert made.names[3] == "written 1" and made.counts()["answer"] == 13
    assert made.keys == prepare(world.images, checkpoint, family, config, True, write=write).keys


# ---- samples of no use


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_an_image_that_the_processor_refuses_is_named_and_skipped(world, tmp_path, family, capsys):
    Image.new("RGB", (5000, 20), "red").save(tmp_path / "thin.png")
    Image.new("RGB", (90, 60), "blue").save(tmp_path / "good.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    calibrator = Calibrator(world.source(family), QuantConfig(dev_type="cpu", calib_text="none"), tmp_path)
    dry_run(calibrator)
    assert calibrator.samples.skipped == 2 and calibrator.samples.names == ["good.png"]
    told = capsys.readouterr().out
    assert "1 with images, 2 skipped" in told or not told
    notices = "\n".join(calibrator.samples.notices)
    assert f"skipped {tmp_path}/thin.png: " in notices and "skipped broken.jpg: " in notices
    with pytest.raises(UsageError, match=r"broken.jpg.*without --strict it is skipped"):
        prepared(world.source(family), tmp_path, strict=True)
    (tmp_path / "broken.jpg").unlink()
    with pytest.raises(UsageError, match=r"thin.png.*without --strict it is skipped"):
        prepared(world.source(family), tmp_path, strict=True)
    (tmp_path / "good.png").unlink()
    with pytest.raises(UsageError, match=r"none of the 1 samples can be used: .*thin.png"):
        prepared(world.source(family), tmp_path)


def test_a_text_with_an_images_placeholder_is_skipped(world, tmp_path):
    file = rows(tmp_path / "t.jsonl", {"text": "an <image> tag"}, {"text": "plain"})
    samples = prepared(world.source("llava"), world.images, calib_text=str(file))
    assert samples.skipped == 1 and samples.texts == 1
    assert any("t.jsonl:1: the answer contains <image>" in notice for notice in samples.notices)


def test_a_calib_text_that_is_none(world):
    with pytest.raises(UsageError, match=r"calib_text nowhere: is no file, and none of shipped, self, none"):
        prepared(world.source("llava"), world.images, calib_text="nowhere")


# ---- to the bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_calibration(world, tmp_path, family, capsys):
    """Several images, answers and texts go through both towers; text alone changes nothing of the vision tower."""
    for path in world.images.iterdir():
        (tmp_path / path.name).symlink_to(path)
    names = sorted(path.name for path in world.images.iterdir())
    shown = names[: 1 + (family not in ALONE)]
    file = rows(tmp_path / "x.jsonl", {"images": shown, "prompt": "Both?", "answer": "Yes."}, {"image": names[2]})
    words = ["quantize", "--model_path", world.source(family), "--calib_images", file, "--device_type", "cpu"]
    words += ["--trust_remote_code", str(family in ALONE)]
    made = {}
    for text in ("none", "shipped"):
        flags = ["--calib_text", text, "--text_tokens", "200", "--save_directory", tmp_path / text]
        assert main([str(word) for word in (*words, *flags)]) == 0
        made[text] = digest(tmp_path / text)
        run = json.loads((tmp_path / text / "quant_run.json").read_text())["blocks"]
        assert all((entry["snr_db"] or 0) > 10 for entry in run if entry["int8"])
        made[text, "vision"] = [
            {key: value for key, value in entry.items() if key not in ("seconds", "steps")}
            for entry in run
            if not any(part in entry["block"] for part in ("layers", "transformer.blocks"))
            or "vision" in entry["block"]
        ]
    told = capsys.readouterr().out
    assert "of text, sha256" in told and "of answers and text" in told
    assert made["none"] != made["shipped"] and made["none", "vision"] == made["shipped", "vision"]
    recipe = json.loads((tmp_path / "shipped" / "quant_recipe.json").read_text())
    assert recipe["config"]["calib_text"] == "shipped" and 100 < recipe["tokens"]["answer"] <= 210
    # Another text is another job.
    other = Calibrator(world.source(family), QuantConfig(dev_type="cpu", calib_text="none"), file)
    other.prepare()
    assert other.samples.digest != recipe["calibration_sha256"]


def test_text_counts_in_the_estimate(world, capsys):
    lines = {}
    for text in ("none", "shipped"):
        main(["quantize", "--model_path", str(world.source("qwen2_vl")), "--calib_images", str(world.images),
              "--calib_text", text, "--text_tokens", "200", "--dry_run", "--device_type", "cpu"])  # fmt: skip
        lines[text] = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["none"]["int8"] != lines["shipped"]["int8"], "more of the arithmetic is the language model's"
    assert "3 with images," in lines["shipped"]["Qwen2-VL,"] and " of text" in lines["shipped"]["Qwen2-VL,"]
    assert lines["none"]["tokens"].endswith("0 of answers and text (33 different)")


def test_verify_measures_on_the_held_out_inputs(world, tmp_path):
    """Images and texts; the models write their own answers to the first images, and are measured on those given."""
    config = QuantConfig(dev_type="cpu", anti_method="none")
    Calibrator(world.source("llava"), config, world.images, quiet=True).run(tmp_path).save(tmp_path / "out")
    report = verify(tmp_path / "out", world.source("llava"), config, tokens=2)
    names = [sample["name"] for sample in report["samples"]]
    assert names[:5] == [each.name for each in load_samples(HELD_OUT, "p", None, 0).samples] and len(names) > 5
    assert all(name.startswith("heldout.jsonl:") for name in names[5:]) and not report["findings"]
    assert [row["tokens"] for row in report["free_running"]["answers"]] == [2, 2]
    assert report["logits"]["positions"] > 64 * 5


def test_held_out_inputs_go_through_every_family(world):
    for family in FAMILIES:
        samples = prepared(world.source(family), HELD_OUT, text_tokens=10**6)
        assert samples.skipped == 0 and samples.texts > 20
        assert min(samples.counts().values()) > 0
