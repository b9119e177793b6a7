"""What becomes of the ranks when their launcher is killed, and ranks that torchrun starts on several hosts."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import tiny
from jobs import run_job
from test_calibrator import digest
from test_ranks import (
    ROOT,
    by_launcher,
    children_of,
    command,
    in_ranks,
    quantize,
    until_a_block_is_kept,
    world,  # noqa: F401  the fixture
)

from quant import Calibrator, QuantConfig
from quant.calibrate.launch import LAUNCHER, joined


def alive(pid):
    """Whether the process is there, and not only as an entry that nobody has asked after."""
    try:
        return re.search(r"^State:\s+[^ZX\s]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is not None
    except FileNotFoundError:
        return False


def within(seconds, condition):
    """Whether it comes true in that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@by_launcher
def test_ranks_end_with_a_launcher_that_is_killed(world, tmp_path):  # noqa: F811
    out, notes = tmp_path / "out", tmp_path / "notes"
    notes.mkdir()
    job = subprocess.Popen(
        command(world, out, "--num_workers", "2"),
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(notes)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until_a_block_is_kept(job)
    ranks = children_of(job.pid)
    assert len(ranks) == 2 and all(map(alive, ranks))
    os.kill(ranks[0], signal.SIGSTOP)  # so that the job cannot end by itself: the other waits for this one
    job.kill()
    job.wait()
    gone = within(15, lambda: not any(map(alive, ranks)))
    for rank in filter(alive, ranks):
        os.kill(rank, signal.SIGKILL)
    assert gone and not out.exists()
    assert job.communicate(timeout=60)[1] == ""
    run_job(world.calibrator(), out, resume=True)  # the lock is free
    assert digest(out) == world.reference


@by_launcher
def test_a_rank_whose_launcher_is_gone_before_it_has_begun(world, tmp_path, monkeypatch, capfd):  # noqa: F811
    monkeypatch.setenv(LAUNCHER, "1")  # not what its parent is
    assert in_ranks(2, lambda: quantize(world.calibrator(), tmp_path / "out")) == [1 << 8] * 2
    assert capfd.readouterr().err.count("QuantError: the launcher has ended, and so does this rank") == 2


@by_launcher
def test_torchrun_on_two_hosts_gives_the_same_bytes(world, tmp_path):  # noqa: F811
    """Two agents on one machine stand for two hosts with a shared file system."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, hosts = tmp_path / "out", []
    for node in (1, 0):
        python, *ours = command(world, out)
        agent = [
            python,
            "-m",
            "torch.distributed.run",
            "--nnodes=2",
            f"--node-rank={node}",
            "--nproc-per-node=1",
            "--master-addr=127.0.0.1",
            f"--master-port={port}",
        ]
        hosts.append(
            subprocess.Popen(
                [*agent, *ours[ours.index("-m") :]], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    said = [host.communicate(timeout=120) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert digest(out) == world.reference
    (second, _), (first, _) = said
    assert second == "" and "18 int8" in first, "rank 0 speaks"


@by_launcher
def test_hosts_that_differ_are_refused(world, tmp_path, capfd):  # noqa: F811
    def job():
        with joined("cpu") as ranks:
            config = QuantConfig(anti_method="m2", dev_type="cpu", seed=ranks.rank, calib_text="none")
            run_job(Calibrator(world.source, config, world.images), tmp_path / "out", ranks=ranks)

    assert in_ranks(2, job) == [1 << 8] * 2
    assert (
        capfd.readouterr().err.count(
            "UsageError: seed is 0 on rank 0 and 1 on rank 1; it must be the same on all hosts"
        )
        == 2
    )
    assert not list(tmp_path.iterdir())


THREADS = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from quant.commands.quantize import script
code = script("quant_qwen2vl.py")
names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
Path({here!r}, os.environ["RANK"] + ".txt").write_text(f"{{code}} {{sum('gloo' in name for name in names)}}")
"""


def test_no_thread_of_a_group_outlives_the_job(tmp_path):
    """One that does may be met by the interpreter's end, which is SIGABRT: a job that is done, and a rank that 'was
    killed'.
    """
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 2)
    program = tmp_path / "job.py"
    program.write_text(THREADS.format(root=str(Path(__file__).resolve().parent.parent), here=str(tmp_path)))
    flags = [
        "--model_path",
        source,
        "--calib_images",
        images,
        "--save_directory",
        tmp_path / "out",
        "--device_type",
        "cpu",
        "--quiet",
    ]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program, *flags]
    subprocess.run(
        list(map(str, command)),
        check=True,
        capture_output=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["0 0", "0 0"]
