"""What a job survives: SIGKILL at any moment, Ctrl-C, a second job, and being resumed with something else than it began
with.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import time

import faults
import pytest
import tiny
import torch
from jobs import run_job
from safetensors.torch import load_file, save_file

from quant import Calibrator, QuantConfig, QuantError, UsageError
from quant.calibrate.work import Work, work_directory
from quant.files.safetensors_io import read_header

POINTS = 50


def digest(directory):
    """Name -> hash of every file; quant_run.json holds the times."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
        if path.name != "quant_run.json"
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A checkpoint, and two calibration samples as the model takes them."""
    root = tmp_path_factory.mktemp("world")

    class World:
        source = tiny.make(root / "src", "qwen2_vl", shards=2)
        images = tiny.make_images(root / "images", 2)

        def calibrator(self, source=None, inputs=None, **choices):
            choices = {"anti_method": "m4", "dev_type": "cpu", **choices}
            return Calibrator(source or self.source, QuantConfig(**choices), inputs or self.inputs)

    made = World()
    prepared = Calibrator(made.source, QuantConfig(), made.images)
    prepared.prepare()
    made.inputs = prepared.samples.inputs
    run_job(made.calibrator(), root / "reference")
    made.reference = digest(root / "reference")
    return made


def leave(world, out, index):
    """A job that dies before operation number `index`, or in its middle."""

    def job():
        with faults.counted(index, faults.killed):
            run_job(world.calibrator(), out, resume=True)

    return faults.in_a_fork(job)


def stopped_in_the_language_tower(world, out):
    def job():
        def dies():
            state = work_directory(out) / "state"
            while json.loads(state.read_text())["done"] != {"vision": 2, "language": 1}:  # until it is committed
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

        with faults.when_block_runs(3, dies):
            run_job(world.calibrator(), out)

    assert faults.in_a_fork(job) == signal.SIGKILL
    assert not out.exists()


def test_killed_anywhere_and_resumed_ends_byte_identical(world, tmp_path):
    with faults.counted() as operations:
        run_job(world.calibrator(), tmp_path / "whole")
    kept, committed = 0, operations.count("fsync")
    assert committed > 20 and len(operations) > 2 * POINTS, "a commit is more than one operation"
    for number in range(POINTS):
        at, out = (len(operations) - 1) * number // (POINTS - 1), tmp_path / f"out{number}"
        assert leave(world, out, at) == signal.SIGKILL, operations[at]
        assert not out.exists() or digest(out) == world.reference, "all at once, or not at all"
        kept += (work_directory(out) / "state").exists()
        assert faults.in_a_fork(lambda out=out: run_job(world.calibrator(), out, resume=True)) == 0
        assert digest(out) == world.reference, f"killed at operation {at}, {operations[at]}"
        assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == [], "nothing is left beside it"
        shutil.rmtree(out)
    assert kept > POINTS // 2, "most of these points lie behind a commit"


def test_a_resumed_job_computes_only_what_is_missing(world, tmp_path):
    out = tmp_path / "out"
    stopped_in_the_language_tower(world, out)
    with faults.when_block_runs(0, lambda: None) as done:
        run_job(world.calibrator(), out, resume=True)
    assert [type(block).__name__ for block in done] == ["Qwen2VLDecoderLayer"]
    assert done[0].self_attn.layer_idx == 1 and digest(out) == world.reference


def test_an_unfinished_job_is_not_overwritten(world, tmp_path):
    out = tmp_path / "out"
    stopped_in_the_language_tower(world, out)
    with pytest.raises(
        UsageError,
        match=r"3 blocks are kept in .*\.out\.quant-work: the same command with --resume .* remove that directory",
    ):
        run_job(world.calibrator(), out)
    run_job(world.calibrator(), out, resume=True)


def touched(world, tmp_path):
    source = shutil.copytree(world.source, tmp_path / "src")
    return source, sorted(source.glob("*.safetensors"))[0]


def test_another_recipe_source_or_calibration_set_is_refused_with_both_values(world, tmp_path):
    out, (source, shard) = tmp_path / "out", touched(world, tmp_path)
    job = tmp_path / "job"
    faults.in_a_fork(lambda: leave(type("Copy", (), {"calibrator": lambda self: world.calibrator(source)})(), out, 120))
    assert (work_directory(out) / "state").exists()
    shutil.copytree(work_directory(out), job)
    for pattern, calibrator in {
        r'anti_method was "m4" and is "none"': lambda: world.calibrator(source, anti_method="none"),
        r"seed was 0 and is 3": lambda: world.calibrator(source, seed=3),
        r'calibration_sha256 was "[0-9a-f]{64}" and is "[0-9a-f]{64}"': lambda: world.calibrator(
            source, world.inputs[:1]
        ),
    }.items():
        with pytest.raises(UsageError, match=pattern):
            run_job(calibrator(), out, resume=True)
    before = os.stat(shard)
    with open(shard, "r+b") as stream:  # one byte, size and time as they were
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(
        UsageError,
        match=rf"{shard.name} was .*sampled sha256 [0-9a-f]+ and is .*sampled sha256 [0-9a-f]+; go back to the first",
    ):
        run_job(world.calibrator(source), out, resume=True)
    assert (work_directory(out) / "state").read_bytes() == (job / "state").read_bytes(), "a refusal costs nothing"


def test_a_second_job_on_the_same_output_is_refused(world, tmp_path):
    out = tmp_path / "out"
    work_directory(out).mkdir()
    with open(work_directory(out) / "lock", "w+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(b"process 4711 on node0")
        held.flush()
        for resume in (False, True):
            with pytest.raises(UsageError, match=r"another job \(process 4711 on node0\) is writing it"):
                run_job(world.calibrator(), out, resume=resume)
    run_job(world.calibrator(), out)  # the owner has died: the lock with it
    assert digest(out) == world.reference


@pytest.fixture
def heeding_interrupts():
    """Started in the background by a shell, a test run ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("times", [1, 2])
def test_interrupts(world, heeding_interrupts, tmp_path, capfd, times):
    """Once: the block is finished and committed. Twice: at once, and the blocks before it are kept."""
    out, kept = tmp_path / "out", 3 if times == 1 else 2

    def interrupts():
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)

    with (
        faults.when_block_runs(2, interrupts) as begun,
        pytest.raises(
            KeyboardInterrupt, match=rf"interrupted; {kept} blocks are kept in .*: the same command with --re"
        ),
    ):
        run_job(world.calibrator(), out)
    assert len(begun) == 3 and "Ctrl-C again stops at once" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run_job(world.calibrator(), out, resume=True)
    assert digest(out) == world.reference


def test_what_is_not_needed_any_more_is_deleted_as_the_run_goes(world, tmp_path):
    out = tmp_path / "out"
    stopped_in_the_language_tower(world, out)
    kept = [read_header(file) for file in (work_directory(out) / "hidden").iterdir()]
    samples = world.calibrator()
    samples.prepare()
    texts = samples.samples.texts
    assert texts > 0
    assert sorted(len(tensors) for tensors in kept) == [2, 2 + texts], "the tower before, and where this one stands"


def test_links_are_not_written_through(world, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_text("mine")
    work_directory(tmp_path / "out").symlink_to(victim)
    with pytest.raises(UsageError, match=r"\.out\.quant-work: is a symbolic link"):
        run_job(world.calibrator(), tmp_path / "out")
    for planted in ("lock", "state.tmp"):  # inside a directory that is ours
        out = tmp_path / f"out-{planted}"
        work_directory(out).mkdir()
        (work_directory(out) / planted).symlink_to(victim / "precious")
        if planted == "lock":
            with pytest.raises(UsageError, match="lock: Too many levels of symbolic links"):
                run_job(world.calibrator(), out)
        else:
            run_job(world.calibrator(), out)
    assert (victim / "precious").read_text() == "mine"


def test_a_state_of_another_version_is_said_to_be_one(world, tmp_path):
    out = tmp_path / "out"
    work_directory(out).mkdir()
    for text in ('{"done": 3, "extra": 1}', "{", "[]"):
        (work_directory(out) / "state").write_text(text)
        with pytest.raises(QuantError, match=re.escape(str(work_directory(out) / "state"))):
            run_job(world.calibrator(), out, resume=True)


@pytest.mark.parametrize("tower", ["vision", "language"])
@pytest.mark.parametrize("harm", ["gone", "lacks a sample"])
def test_a_hidden_state_that_is_missing_is_refused(world, tmp_path, tower, harm):
    """Going on without it would begin the tower anew, on blocks that are quantized already: wrong weights, no error."""
    out = tmp_path / "out"
    stopped_in_the_language_tower(world, out)
    files = [file for file in (work_directory(out) / "hidden").iterdir() if file.name.startswith(tower)]
    assert len(files) == 1
    tensors = load_file(files[0])
    files[0].unlink()
    if harm != "gone":
        save_file(dict(list(tensors.items())[:1]), files[0])
    with pytest.raises(
        QuantError, match=rf"block \d of the {tower} tower lacks sample \d, pass 1 .*; without it the job"
    ):
        run_job(world.calibrator(), out, resume=True)
    assert not out.exists() and (work_directory(out) / "state").exists()
    save_file(tensors, files[0])
    run_job(world.calibrator(), out, resume=True)
    assert digest(out) == world.reference


def test_hidden_states_are_kept_as_they_lie_in_memory(tmp_path):
    """A product of the same numbers, otherwise strided, may differ in the last bit: SigLIP's blocks get such."""
    work = Work(tmp_path, keeps=True)
    work.state.done["vision"] = 1
    straight = torch.arange(24.0).reshape(2, 3, 4)
    hidden = {
        (0, 0): straight,
        (1, 0): straight.permute(0, 2, 1),
        (2, 1): straight.permute(2, 0, 1),
        (3, 0): straight[0],
    }
    (tmp_path / "hidden").mkdir(exist_ok=True)
    work.keep_hidden("vision", 0, 0, hidden, {})
    kept = work.kept("vision", hidden, ())
    for key, tensor in hidden.items():
        assert torch.equal(kept[key].hidden, tensor) and kept[key].hidden.stride() == tensor.stride()
