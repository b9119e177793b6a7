"""What goes wrong in hours: a disk that is full or fails, a source that changes, memory that does not suffice, a clock
that jumps.

Each costs one clear line; nothing half-written appears, and the job can be resumed when the cause is gone.
"""

import errno
import os
import re
import shutil
import time

import faults
import pytest
import torch
from jobs import run_job
from test_resume import digest, world  # noqa: F401  the fixture

from quant import QuantError, UsageError
from quant.calibrate.work import work_directory
from quant.inputs.reopen import reopen_images
from quant.inputs.sources import load_samples

# A file that cannot be shared is copied, what the kernel cannot copy is copied by hand, what cannot be tidied up now is
# later; and a directory that is there need not be made. Whatever of these fails, the result must be right.
TOLERATED = {"link", "sendfile", "unlink", "rmdir", "mkdir"}
LOCK = 4  # the first operations make and lock the work directory, and note who has it: that note may fail
EVERY = 2  # of the operations one in two is made to fail, each third of these in another way; 1 takes them all


@pytest.mark.parametrize(
    "number,text",
    [
        (errno.ENOSPC, "No space left on device"),
        (errno.EIO, "Input/output error"),
        (errno.EROFS, "Read-only file system"),
    ],
)
def test_a_disk_that_fails_at_any_operation(world, tmp_path, number, text):  # noqa: F811
    with faults.counted() as operations:
        run_job(world.calibrator(), tmp_path / "whole")
    saved = max(index for index, name in enumerate(operations) if name == "rename")  # what follows is tidying up
    first = [errno.ENOSPC, errno.EIO, errno.EROFS].index(number) * EVERY
    for at in range(first, saved, 3 * EVERY):
        out = tmp_path / f"out{at}"
        with faults.counted(at, faults.raising(number)) as seen:
            try:
                run_job(world.calibrator(), out, resume=True)
            except QuantError as err:
                caught = str(err)
            else:
                caught = None
        if caught is None:
            assert (seen[at] in TOLERATED or at <= LOCK) and digest(out) == world.reference, (
                f"{seen[at]} failed, and nobody noticed"
            )
            continue
        assert "\n" not in caught and str(tmp_path) in caught and text in caught
        assert not out.exists()
        assert ("--resume" in caught) == work_directory(out).exists(), "kept, and said so; or nothing is left"
        if at % 5 == 0 or at > saved - 30:
            run_job(world.calibrator(), out, resume=True)
            assert digest(out) == world.reference


def copy_of(world, tmp_path):  # noqa: F811
    source = shutil.copytree(world.source, tmp_path / "src")
    return source, sorted(source.glob("*.safetensors"))[-1]


@pytest.mark.parametrize("change,pattern", [
    (
        lambda shard: os.truncate(shard, os.path.getsize(shard) - 1000),
        r"(changed while the job ran: \d+ bytes.*, \d+ bytes|ended at byte \d+)",
    ),
    (
        lambda shard: os.utime(shard, ns=(1, 1)),
        r"changed while the job ran: .*changed at \d+ ns.* at the start, .*changed at 1 ns",
    ),
    (lambda shard: shard.unlink(), r"No such file or directory"),
], ids=["truncated", "touched", "gone"])  # fmt: skip
def test_a_shard_that_changes_during_the_job(world, tmp_path, change, pattern):  # noqa: F811
    source, shard = copy_of(world, tmp_path)
    whole, before = shard.read_bytes(), os.stat(shard)
    with (
        faults.when_block_runs(2, lambda: change(shard)),
        pytest.raises(QuantError, match=rf"{re.escape(str(shard))}: {pattern}"),
    ):
        run_job(world.calibrator(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shard.write_bytes(whole)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    run_job(world.calibrator(source), tmp_path / "out", resume=True)
    assert digest(tmp_path / "out") == world.reference


READS = (
    23  # of the reads of a job one in so many is made to fail; a prime, so that no file's share of them is passed over
)


def eio(name):
    raise OSError(errno.EIO, os.strerror(errno.EIO), name)


def fails_at_read(at, calibrator, directories, out):
    """The one line of a job whose read number `at` fails, with the name of what was read."""
    with faults.counted_reads(directories, at, eio) as seen:
        with pytest.raises(QuantError) as caught:
            run_job(calibrator(), out, resume=True)
    text, name = str(caught.value), os.path.basename(seen[at])
    assert "\n" not in text and "Input/output error" in text and name in text, f"{seen[at]}: {text}"
    assert not out.exists()
    assert ("--resume" in text) == work_directory(out).exists(), "kept, and said so; or nothing is left"


def test_a_read_error_anywhere_in_the_checkpoint(world, tmp_path):  # noqa: F811
    with faults.counted_reads([world.source]) as reads:
        run_job(world.calibrator(), tmp_path / "whole")
    kept = 0
    for at in range(0, len(reads), READS):
        out = tmp_path / f"out{at}"
        fails_at_read(at, world.calibrator, [world.source], out)
        kept += work_directory(out).exists()
        if work_directory(out).exists() or at % 3 == 0:
            run_job(world.calibrator(), out, resume=True)
            assert digest(out) == world.reference
    assert kept > 3, "some of these points lie behind a commit"


def test_a_read_error_in_an_image_or_in_a_processor_file(world, tmp_path):  # noqa: F811
    """An image that the disk does not give is not skipped, as a broken one is: the job would calibrate on something
    else.
    """

    def calibrator():
        return world.calibrator(inputs=world.images)

    with faults.counted_reads([world.images, world.source]) as reads:
        run_job(calibrator(), tmp_path / "whole")
    reference, images = (
        digest(tmp_path / "whole"),
        [at for at, name in enumerate(reads) if name.startswith(str(world.images))],
    )
    assert len(images) >= 4, "checked, and read again to be encoded"
    encoder = {
        reads[at]: at for at in reversed(range(images[1] + 1, images[2]))
    }  # the first time that the encoder reads each of its files
    assert {"config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"} <= {
        os.path.basename(name) for name in encoder
    }
    for at in [*images, *encoder.values()]:
        out = tmp_path / f"out{at}"
        fails_at_read(at, calibrator, [world.images, world.source], out)
        if at in images[::2]:
            run_job(calibrator(), out, resume=True)
            assert digest(out) == reference


def test_a_read_error_in_what_a_job_kept(world, tmp_path):  # noqa: F811
    """Again and again, each time one read later: nothing of what was kept is lost."""
    out, at = tmp_path / "out", 0
    with faults.when_block_runs(3, lambda: eio("a block")), pytest.raises(OSError):
        run_job(world.calibrator(), out)
    while not out.exists():
        with faults.counted_reads([work_directory(out)], at, eio) as seen:
            try:
                run_job(world.calibrator(), out, resume=True)
            except QuantError as error:
                assert "\n" not in str(error) and "Input/output error" in str(error) and seen[at] in str(error)
                assert (work_directory(out) / "state").exists() and not out.exists()
        at += 1
    assert at > 3 and digest(out) == world.reference


def test_a_device_without_memory_for_a_block_leaves_it_to_the_cpu(world, tmp_path):  # noqa: F811
    """The device is the CPU here too: so the bytes must be the same."""
    calibrator, lines = world.calibrator(), []
    calibrator.reporter.line = lambda text="": lines.append(text)

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with faults.when_block_runs(1, full):
        run_job(calibrator, tmp_path / "out")
    assert digest(tmp_path / "out") == world.reference
    assert "visual.blocks.1: out of memory on cpu, done on the CPU" in lines


def test_no_memory_at_all_is_one_line(world, tmp_path):  # noqa: F811
    with (
        faults.when_block_runs(0, lambda: torch.empty(1 << 60)),
        pytest.raises(
            QuantError, match=r"visual\.blocks\.0: .*can't allocate memory.*; free some, or take fewer samples"
        ),
    ):
        run_job(world.calibrator(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_image_that_changes_after_it_was_checked(world, tmp_path):  # noqa: F811
    images = shutil.copytree(world.images, tmp_path / "images")
    samples = load_samples(images, "What?", None, 0).samples
    samples[0].images[0].write_bytes(samples[1].images[0].read_bytes())
    with pytest.raises(
        QuantError,
        match=rf"{samples[0].images[0].name}: changed since it was checked: .*sha256 [0-9a-f]+, it was [0-9a-f]+",
    ):
        reopen_images(samples[0])
    samples[1].images[0].unlink()
    with pytest.raises(QuantError, match=r"no such file"):
        reopen_images(samples[1])


def test_a_clock_that_jumps_changes_nothing(world, tmp_path, monkeypatch):  # noqa: F811
    hours = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 3600 * next(hours))
    calibrator = world.calibrator()
    run_job(calibrator, tmp_path / "out")
    assert digest(tmp_path / "out") == world.reference and 0 < calibrator.seconds < 600


def test_a_work_directory_that_cannot_be_made(world, tmp_path):  # noqa: F811
    work_directory(tmp_path / "out").write_text("a file in its place")
    with pytest.raises(UsageError, match=r"\.out\.quant-work.*; the job cannot keep its state there"):
        run_job(world.calibrator(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
