"""A device without memory for a block: by one process and by several, wherever in the block it happens, to whichever
rank.

The device is the CPU here too, so the export must have the bytes of an undisturbed run. One that hangs is ended by a
signal.
"""

import os
import signal

import pytest
import torch
from jobs import run_job
from test_calibrator import digest
from test_ranks import QWEN, in_ranks, quantize, world  # noqa: F401  the fixture

from quant import QuantError
from quant.arithmetic.stats import Observer
from quant.base.console import Reporter
from quant.calibrate.block import BlockQuantizer
from quant.calibrate.ranks import NoMemory, Ranks
from quant.model.paused import Walk
from quant.model.streamed import StreamedModel

BLOCKS = ("visual.blocks.0", "visual.blocks.1", "model.layers.0", "model.layers.1")
SECONDS = 60
OWNERS = {"update": Observer}  # of what is not the quantizer's own
only_qwen = pytest.mark.parametrize("world", [QWEN], indirect=True, ids=["qwen2_vl"])


def memory_ends(place, which, block):
    """In the block with number `block` of the job, `place` raises once: at its call number `which`, having done its
    work.
    """
    owner, calls, entered = OWNERS.get(place, BlockQuantizer), [], []
    original, enter = getattr(owner, place), BlockQuantizer.quantize

    def counted(self, *args):
        entered.append(args)
        return enter(self, *args)

    def full(self, *args):
        result = original(self, *args)
        if len(entered) == block + 1:
            calls.append(args)
            if len(calls) == which:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return result

    BlockQuantizer.quantize = counted
    setattr(owner, place, full)


@pytest.fixture
def undo(monkeypatch):
    """What memory_ends replaces comes back."""
    for owner, place in [
        (BlockQuantizer, name) for name in ("quantize", "_observe", "_smooth", "_solve", "_round", "_measure")
    ] + [(Observer, "update")]:
        monkeypatch.setattr(owner, place, getattr(owner, place))


@only_qwen
@pytest.mark.parametrize("place,which", [("update", 3), ("_solve", 2), ("_measure", 2)])
def test_of_one_process(world, tmp_path, undo, place, which):  # noqa: F811
    """measure's second call comes when the block in memory has been smoothed already."""
    memory_ends(place, which, 2)
    calibrator, lines = world.calibrator(), []
    calibrator.reporter.line = lambda text="": lines.append(text)
    run_job(calibrator, tmp_path / "out")
    assert digest(tmp_path / "out") == world.reference
    assert [line for line in lines if "out of memory" in line] == [
        "model.layers.0: out of memory on cpu, done on the CPU"
    ]


@only_qwen
@pytest.mark.parametrize("place", ["set", "enter"])
def test_of_what_comes_before(world, tmp_path, monkeypatch, place):  # noqa: F811
    """A block that does not even fit is done on the CPU; what stands outside the blocks is small, and ends the job."""
    owner = Walk if place == "enter" else StreamedModel
    original, calls = getattr(owner, place), []

    def full(self, *args):
        if "model.layers.1.mlp.down_proj.weight" in args or place == "enter" and self.tower.name == "language":
            calls.append(args)
            if len(calls) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, *args)

    monkeypatch.setattr(owner, place, full)
    if place == "enter":
        with pytest.raises(
            QuantError, match=r"the language tower's entrance: CUDA out of memory.*; free some, or take fewer samples"
        ):
            run_job(world.calibrator(), tmp_path / "out")
        return
    run_job(world.calibrator(), tmp_path / "out")
    assert digest(tmp_path / "out") == world.reference and len(calls) == 2


@only_qwen
@pytest.mark.parametrize("size,failing", [
    (2, {1: ("update", 1, 0)}), (2, {1: ("_solve", 1, 2)}), (2, {1: ("_round", 1, 1)}), (2, {1: ("_measure", 2, 3)}),
    (2, {0: ("update", 1, 2)}), (2, {0: ("_solve", 1, 0)}), (2, {0: ("_round", 2, 3)}),
    (2, {0: ("_measure", 1, 1)}), (2, {0: ("_measure", 2, 3)}),
    (3, {1: ("_observe", 1, 3)}), (3, {2: ("_round", 2, 2)}), (3, {0: ("_measure", 2, 0)}),
    (3, {0: ("_solve", 1, 2), 2: ("update", 1, 2)}),
    (3, {0: ("_measure", 2, 1), 1: ("_round", 1, 1), 2: ("_round", 1, 1)}),
], ids=str)  # fmt: skip
def test_of_one_rank_or_more(world, tmp_path, capfd, size, failing):  # noqa: F811
    """failing: rank -> what of it fails. All ranks leave the block at the same exchange, and do it again."""

    def job():
        signal.alarm(SECONDS)  # ends a rank that hangs
        rank = int(os.environ["RANK"])
        if rank in failing:
            memory_ends(*failing[rank])
        calibrator = world.calibrator()
        calibrator.reporter = Reporter(quiet=True)  # the first rank alone prints, as in the command
        if rank == 0:
            calibrator.reporter.line = lambda text="": print(text, flush=True)
        quantize(calibrator, tmp_path / "out")

    assert in_ranks(size, job) == [0] * size
    assert digest(tmp_path / "out") == world.reference
    lines = [line for line in capfd.readouterr().out.splitlines() if "out of memory" in line]
    (block,) = {block for _, _, block in failing.values()}
    earliest = {rank for rank in failing if len(failing) == 1 or failing[rank][:2] in (("update", 1), ("_round", 1))}
    assert lines == [f"{BLOCKS[block]}: out of memory on cpu of rank {max(earliest)}, done on the CPU"]


@only_qwen
def test_of_the_host_in_the_second_attempt_is_one_line(world, tmp_path, undo):  # noqa: F811
    memory_ends("_observe", 1, 1)
    attempt = BlockQuantizer.quantize

    def no_more(self, tower, index, calls):
        if self.model.device.type == "cpu" and getattr(no_more, "failed", False):
            torch.empty(1 << 60)
        try:
            return attempt(self, tower, index, calls)
        except torch.OutOfMemoryError:
            no_more.failed = True
            raise

    BlockQuantizer.quantize = no_more
    with pytest.raises(
        QuantError, match=r"visual\.blocks\.1: .*can't allocate memory.*; free some, or take fewer samples"
    ):
        run_job(world.calibrator(), tmp_path / "out")


def test_an_npu_says_it_in_a_plain_runtime_error():
    """torch_npu's message; older releases have no class for it."""
    with pytest.raises(NoMemory), Ranks().together():
        raise RuntimeError("NPU out of memory. Tried to allocate 260.00 MiB (NPU 0; 28.50 GiB total capacity)")
    with pytest.raises(RuntimeError, match="shape"), Ranks().together():
        raise RuntimeError("shape '[2]' is invalid")
