"""Whole jobs on a model with deepstack, on image, video and text: killed at every block and resumed, and on several
ranks, the bytes are those of one process that was not disturbed.
"""

import json
import os
import signal
import time

import faults
import pytest
import qwen3vl
import torch
from jobs import run_job
from test_calibrator import digest
from test_ranks import in_ranks

from quant import Calibrator, QuantConfig, QuantError, UsageError
from quant.calibrate.launch import joined
from quant.calibrate.work import work_directory
from quant.files.safetensors_io import read_header
from quant.inputs.samples import _key

BLOCKS = 5 + 4  # vision and language
SAMPLES = [
    qwen3vl.sample([(1, 4, 6)], seed=0),
    qwen3vl.sample([(1, 4, 4)], video=(2, 4, 6), seed=1),
    qwen3vl.sample([(1, 8, 4), (1, 4, 4)], seed=2),
    qwen3vl.sample([], seed=3),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("qwen3vl")

    class World:
        source = qwen3vl.make(root / "src", torch.bfloat16)

        def calibrator(self, samples=None, **choices):
            config = QuantConfig(**{"anti_method": "m4", "dev_type": "cpu", **choices})
            return Calibrator(self.source, config, samples or SAMPLES, quiet=True)

    made = World()
    run_job(made.calibrator(), root / "reference")
    made.reference = digest(root / "reference")
    return made


@pytest.mark.parametrize("at", range(1, BLOCKS))
def test_killed_at_any_block_and_resumed(world, tmp_path, at):
    out = tmp_path / "out"

    def dies():
        deadline = time.monotonic() + 60
        while not (work_directory(out) / "state").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    def job():
        with faults.when_block_runs(at, dies):
            run_job(world.calibrator(), out)

    assert faults.in_a_fork(job) == signal.SIGKILL
    with faults.when_block_runs(BLOCKS, lambda: None) as run:
        run_job(world.calibrator(), out, resume=True)
    assert digest(out) == world.reference
    assert BLOCKS - at <= len(run) <= BLOCKS - at + 1, "what was committed is not computed again"


def test_a_tap_that_is_missing_is_refused(world, tmp_path):
    """What a block behind a tower reads of its middle is kept until the job's end."""
    out = tmp_path / "out"

    def job():
        with faults.when_block_runs(7, lambda: time.sleep(0.3) or os.kill(os.getpid(), signal.SIGKILL)):
            run_job(world.calibrator(), out)

    assert faults.in_a_fork(job) == signal.SIGKILL
    kept = [file for file in (work_directory(out) / "hidden").iterdir() if file.name.startswith("vision-1.")]
    assert [len(read_header(file)) for file in kept] == [4], "three images' passes and a video's"
    kept[0].rename(tmp_path / "elsewhere")
    with pytest.raises(QuantError, match=r"of the output of block 1 of the vision tower lacks sample \d, pass 1 "):
        run_job(world.calibrator(), out, resume=True)
    (tmp_path / "elsewhere").rename(kept[0])
    run_job(world.calibrator(), out, resume=True)
    assert digest(out) == world.reference


@pytest.mark.parametrize("size", [2, 3])
def test_the_number_of_ranks_does_not_change_a_byte(world, tmp_path, size):
    def job():
        with joined("cpu") as ranks:
            run_job(world.calibrator(), tmp_path / "out", ranks=ranks)

    assert in_ranks(size, job) == [0] * size
    assert digest(tmp_path / "out") == world.reference


def test_resumed_after_a_first_rank_without_an_image(world, tmp_path):
    """Of two samples the first, rank 0's, is text alone; how vision blocks answer is known to rank 1 only."""
    number = next(n for n in range(20) if _key(qwen3vl.sample([], seed=n)) < min(map(_key, SAMPLES[:1])))
    samples = [SAMPLES[0], qwen3vl.sample([], seed=number)]
    run_job(world.calibrator(samples), tmp_path / "one")
    out = tmp_path / "out"

    def job():
        with joined("cpu") as ranks, faults.when_block_runs(7 if ranks.rank else 2, lambda: os.kill(os.getpid(), 9)):
            run_job(world.calibrator(samples), out, ranks=ranks)

    in_ranks(2, job)
    assert json.loads((work_directory(out) / "state").read_text())["answers_tuple"].keys() >= {"vision"}
    run_job(world.calibrator(samples), out, resume=True)
    # Neither in the records nor on the card: rank 0 measures the vision blocks on an image, and had none.
    measured = ("README.md", "quant_run.json")
    assert digest(out, measured) == digest(tmp_path / "one", measured)


def test_gptq_on_several_ranks(world, tmp_path):
    """Second moments are added as whole numbers: the ranks' order does not change a bit."""
    run_job(world.calibrator(w_method="gptq"), tmp_path / "one")

    def job():
        with joined("cpu") as ranks:
            run_job(world.calibrator(w_method="gptq"), tmp_path / "two", ranks=ranks)

    assert in_ranks(2, job) == [0, 0]
    assert digest(tmp_path / "two") == digest(tmp_path / "one") != world.reference


def test_a_tower_that_no_sample_enters_is_not_guessed(world, tmp_path):
    text = [SAMPLES[3]]
    with pytest.raises(UsageError, match=r"none of the 1 samples enters the vision tower, 15 linears of which are to"):
        run_job(world.calibrator(text), tmp_path / "out")
    run_job(world.calibrator(text, vision="float"), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()
