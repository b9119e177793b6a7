"""--calib_text self, as jobs: the same bytes again, from the file, after a kill, by several ranks; and where the model
does not fit.
"""

import json
import os
import re
import signal
import sys
import weakref

import faults
import pytest
import tiny
from jobs import run_job
from PIL import Image
from test_ranks import in_ranks
from test_resume import digest
from test_sampling import ROOT

from quant import Calibrator, QuantConfig, QuantError, UsageError
from quant.base.config import TEXT_FILE
from quant.base.console import Reporter
from quant.calibrate import own_text
from quant.calibrate.launch import joined
from quant.calibrate.sampling import Writer
from quant.calibrate.summary import dry_run
from quant.calibrate.work import Work, work_directory
from quant.export.card import CARD
from quant.export.recipe import RECIPE
from quant.inputs.encoder import Encoder
from quant.report.facts import gather

SOURCES = {name: ROOT / "examples" / name for name in ("tiny-qwen2vl", "tiny-llava")}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.make_images(tmp_path_factory.mktemp("own") / "images", 3)


class World:
    def __init__(self, source, images, out):
        self.source, self.images = source, images
        self.reference = run_job(self.calibrator(), out)

    def calibrator(self, images=None, quiet=True, **choices):
        choices = {"anti_method": "m4", "dev_type": "cpu", "calib_text": "self", "text_tokens": 60, **choices}
        return Calibrator(self.source, QuantConfig(**choices), images or self.images, Reporter(quiet))


@pytest.fixture(scope="module")
def world(images, tmp_path_factory):
    return World(SOURCES["tiny-qwen2vl"], images, tmp_path_factory.mktemp("qwen") / "out")


def weights(out):
    """What a server reads: all but the records of how it was made, and what the model card repeats of them."""
    return {name: value for name, value in digest(out).items() if name not in (RECIPE, TEXT_FILE, CARD)}


def rows(out):
    return [json.loads(line) for line in (out / TEXT_FILE).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def no_writing(monkeypatch):
    """From its call on, whoever writes anew fails."""

    def fails(*args):
        raise AssertionError("the model wrote anew")

    def begin():
        monkeypatch.setattr(Writer, "answers", fails)
        monkeypatch.setattr(Writer, "passages", fails)

    return begin


@pytest.mark.parametrize("source", SOURCES)
def test_from_its_file_comes_the_same(source, images, tmp_path):
    world = World(SOURCES[source], images, tmp_path / "one")
    one = world.reference
    passages, answers = ([row for row in rows(one) if ("answer_to" in row) is some] for some in (False, True))
    assert sum(len(row["ids"]) for row in passages) == 60 and len(answers) == 3
    described = json.loads((one / RECIPE).read_text())
    assert described["own_text"] == {
        "file": TEXT_FILE,
        "passages": len(passages),
        "answers": 3,
        "tokens": sum(len(row["ids"]) for row in rows(one)),
    }
    from_file = run_job(world.calibrator(calib_text=str(one / TEXT_FILE)), tmp_path / "from_file")
    assert weights(from_file) == weights(one) and not (from_file / TEXT_FILE).exists()
    assert json.loads((from_file / RECIPE).read_text())["calibration_sha256"] == described["calibration_sha256"]


def test_a_seed_writes_its_own_text(world):
    texts = []
    for choices in ({}, {"seed": 1}):
        calibrator = world.calibrator(**choices)
        calibrator.prepare()
        texts.append(calibrator.own_text.lines)
    assert texts[0] == (world.reference / TEXT_FILE).read_bytes() != texts[1]


def test_the_answers_shipped_with_the_photographs_give_way(world):
    """Of the photographs shipped here; a user's own answers stay, and his texts count among --text_tokens."""
    calibrator = world.calibrator(images=ROOT / "calibImages", num_samples=2)
    calibrator.prepare()
    assert len(calibrator.own_text.written.answers) == 2 and calibrator.samples.texts == len(
        calibrator.own_text.written.passages
    )


def test_the_users_answers_and_texts_stay(world, tmp_path):
    images = tiny.make_images(tmp_path / "images", 2)
    names = sorted(path.name for path in images.iterdir())
    lines = [{"image": names[0], "prompt": "What?", "answer": "AB12"}, {"image": names[1]}, {"text": "ABCDEF 123456"}]
    file = images / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    calibrator = world.calibrator(file)
    calibrator.prepare()
    written, samples = calibrator.own_text.written, calibrator.samples
    assert len(written.answers) == 1 and samples.texts == 1 + len(written.passages)
    own = sum(map(len, written.passages))
    user = next(ids for ids in samples.inputs if ids["input_ids"].shape[1] == 60 - own)
    assert calibrator.family.name == "Qwen2-VL" and "ABCDEF 123456" in Encoder(world.source).decode(
        user["input_ids"][0]
    )


def killed_before_the_first_block(world, out):
    def job():
        Work.begin = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        run_job(world.calibrator(), out)

    assert faults.in_a_fork(job) == signal.SIGKILL
    assert (work_directory(out) / "text").is_file() and not out.exists()


def test_killed_before_the_first_block_and_resumed_it_does_not_write_anew(world, tmp_path, no_writing):
    out = tmp_path / "out"
    killed_before_the_first_block(world, out)
    no_writing()
    run_job(world.calibrator(), out, resume=True)
    assert digest(out) == digest(world.reference)
    assert not work_directory(out).exists()


def test_a_job_of_another_seed_writes_anew_until_a_block_is_committed(world, tmp_path):
    out = tmp_path / "out"
    killed_before_the_first_block(world, out)

    def dies():
        original = Work.commit_block

        def commit(self, *args):
            original(self, *args)
            os.kill(os.getpid(), signal.SIGKILL)

        Work.commit_block = commit
        run_job(world.calibrator(seed=1), out, resume=True)

    assert faults.in_a_fork(dies) == signal.SIGKILL
    with pytest.raises(UsageError, match="--resume: --seed was 1 and is 0; go back to the first, or remove"):
        run_job(world.calibrator(), out, resume=True)
    run_job(world.calibrator(seed=1), out, resume=True)
    assert digest(out) != digest(world.reference)


def test_a_finished_job_says_so_without_a_word_written(world, no_writing, capsys):
    no_writing()
    run_job(world.calibrator(quiet=False), world.reference, resume=True)
    assert f"{world.reference} is complete" in capsys.readouterr().out.replace("\n", "")


def test_two_ranks_make_the_bytes_of_one(world, tmp_path):
    def job():
        with joined("cpu") as ranks:
            if ranks.rank > 0:
                Writer.passages = Writer.answers = None  # the first writes
            run_job(world.calibrator(), tmp_path / "out", ranks=ranks)

    assert in_ranks(2, job) == [0, 0]
    assert digest(tmp_path / "out") == digest(world.reference)


def test_where_it_does_not_fit_the_shipped_text_is_used(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("quant.model.whole.free_memory", lambda device: {0: 5_000_000})
    monkeypatch.setattr(own_text, "free_memory", lambda device: {0: 5_000_000})
    out = run_job(world.calibrator(quiet=False), tmp_path / "out")
    said = r"the whole model takes [\d.]+ MB, 5 MB are available"
    assert_said(capsys, rf"text     the shipped text, not the model's own: {said}")
    made = json.loads((out / RECIPE).read_text())
    assert made["own_text"].keys() == {"refused"} and not (out / TEXT_FILE).exists()
    run_job(world.calibrator(), out, resume=True)  # it is finished, and known as such
    shipped = run_job(world.calibrator(calib_text="shipped"), tmp_path / "shipped")
    wanted = json.loads((shipped / RECIPE).read_text())
    assert made["calibration_sha256"] == wanted["calibration_sha256"] and weights(out) == weights(shipped)


def test_out_of_memory_while_it_writes(world, tmp_path, monkeypatch, capsys):
    def fails(*args):
        raise RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Writer, "passages", fails)
    run_job(world.calibrator(quiet=False), tmp_path / "out")
    assert_said(capsys, "the model's own: out of memory while it wrote: NPU out of memory. Tried to allocate 2.00 GiB")


def assert_said(capsys, pattern):
    out = capsys.readouterr().out
    assert re.search(pattern, out), out


def test_it_tells_what_it_wrote_and_a_picture_of_no_use_is_skipped(world, tmp_path, capsys):
    images = tiny.make_images(tmp_path / "images", 2)
    Image.new("RGB", (5000, 20)).save(images / "strip.png")
    out = run_job(world.calibrator(images, quiet=False), tmp_path / "out")
    count = len([row for row in rows(out) if "answer_to" not in row])
    total = sum(len(row["ids"]) for row in rows(out))
    assert_said(capsys, rf"text     {count} passages, 2 answers, {total} tokens by the model itself, \d+\.\d s")


def test_a_dry_run_writes_nothing(world, no_writing, capsys):
    no_writing()
    dry_run(world.calibrator(quiet=False))
    assert_said(capsys, "the shipped text, not the model's own: a dry run writes none")


def test_ctrl_c_while_it_writes_ends_it_and_leaves_nothing(world, tmp_path, monkeypatch):
    monkeypatch.setattr(own_text, "stop_asked", lambda: True)
    with pytest.raises(KeyboardInterrupt):
        run_job(world.calibrator(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failure_behind_the_text_names_the_way_on(world, tmp_path, monkeypatch):
    def fails(*args):
        raise QuantError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Work, "begin", fails)
        with pytest.raises(QuantError, match="the disk is full; the model's own text is kept in .*--resume goes on"):
            run_job(world.calibrator(), tmp_path / "out")
    run_job(world.calibrator(), tmp_path / "out")  # without --resume it begins anew
    assert digest(tmp_path / "out") == digest(world.reference)


def test_the_model_is_gone_before_calibration(world, monkeypatch):
    """Nothing of it is referred to any more when the samples are encoded."""
    seen = []
    original = own_text.whole_model

    def remembered(*args, **how):
        streamed = original(*args, **how)
        seen.append(weakref.ref(streamed.model))
        return streamed

    monkeypatch.setattr(own_text, "whole_model", remembered)
    world.calibrator().prepare()
    assert len(seen) == 1 and seen[0]() is None, sys.getrefcount(seen[0]())


def test_the_report_finds_the_pictures_by_what_the_model_answered(world):
    facts = gather(world.reference, None, None, str(world.images))
    assert len(facts.thumbnails) == 3
