"""One job by several processes: the same bytes for any number of them, and what happens when one dies.

Ranks are forks of this process, with the environment that torch.distributed.run gives them; two tests go through the
launcher itself.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import faults
import pytest
import tiny
from jobs import run_job
from test_calibrator import digest

from quant import Calibrator, QuantConfig
from quant.calibrate.block import chains
from quant.calibrate.launch import NOTES, joined
from quant.calibrate.ranks import Ranks
from quant.calibrate.work import Work, work_directory
from quant.families import FAMILIES

ROOT = Path(__file__).parent.parent


def in_ranks(size, job):
    """job() in `size` forks; their exit statuses, as os.waitpid has them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            environment = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "TORCHELASTIC_RUN_ID": "test",
            }
            os.environ.update({name: str(value) for name, value in environment.items()})
            with faults.exiting():
                job()
        children.append(child)
    return [os.waitpid(child, 0)[1] for child in children]


# family, method, images, text
QWEN, LLAVA = ("qwen2_vl", "m2", 4, "shipped"), ("llava", "m4", 2, "none")
by_launcher = pytest.mark.parametrize("world", [QWEN], indirect=True, ids=["launcher"])


def quantize(calibrator, out, **how):
    """What a rank does."""
    with joined("cpu") as ranks:
        run_job(calibrator, out, ranks=ranks, **how)


@pytest.fixture(scope="module", params=[QWEN, LLAVA], ids=lambda param: param[0])
def world(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("ranks")
    family, method, count, text = request.param

    class World:
        source = tiny.make(root / "src", family)
        images = tiny.make_images(root / "images", count)

        def calibrator(self):
            config = QuantConfig(anti_method=method, calib_text=text, dev_type="cpu")
            return Calibrator(self.source, config, self.images)

    made = World()
    run_job(made.calibrator(), root / "one")
    made.reference = digest(root / "one")
    return made


@pytest.mark.parametrize("size", [2, 3])
def test_the_number_of_ranks_does_not_change_a_byte(world, tmp_path, size):
    """Three ranks on two samples: one has none."""
    statuses = in_ranks(size, lambda: quantize(world.calibrator(), tmp_path / "out"))
    assert statuses == [0] * size
    assert digest(tmp_path / "out") == world.reference
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_killed_with_three_ranks_and_resumed_with_two_and_with_one(world, tmp_path):
    def dies_behind(blocks):
        def job():
            original = Work.commit_block

            def commit(self, *args):
                original(self, *args)
                if sum(self.state.done.values()) == blocks:
                    time.sleep(0.5)  # until all ranks are here
                    os.kill(os.getpid(), signal.SIGKILL)

            Work.commit_block = commit
            quantize(world.calibrator(), tmp_path / "out", resume=True)

        return job

    assert in_ranks(3, dies_behind(1)) == [signal.SIGKILL] * 3
    assert len(list((work_directory(tmp_path / "out") / "hidden").iterdir())) == 3, "a file for each rank"
    assert in_ranks(2, dies_behind(3)) == [signal.SIGKILL] * 2
    run_job(world.calibrator(), tmp_path / "out", resume=True)
    assert digest(tmp_path / "out") == world.reference


def test_samples_are_shared_by_their_tokens():
    costs = [5, 90, 10, 40, 50, 30, 20, 15]
    shares = [Ranks(rank, 3).share(costs) for rank in range(3)]
    assert sorted(sum(shares, [])) == list(range(8)) and 0 in shares[0]
    loads = [sum(costs[number] for number in share) for share in shares]
    assert max(loads) <= 1.2 * sum(costs) / 3
    assert [Ranks(rank, 4).share([7, 7]) for rank in range(4)] == [[0], [1], [], []]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_groups_of_different_chains_share_no_weight(family):
    """Else one rank would fold a weight that another solves for."""
    for tower in family.towers:
        groups = [group for group in tower.groups if group.source]
        chain = chains(groups)
        for a in groups:
            for b in groups:
                if chain[a] != chain[b]:
                    assert not {*a.linears, a.source} & {*b.linears, b.source}
        assert len(set(chain.values())) == 2, "attention and MLP"


def command(world, out, *flags):
    paths = ("--model_path", world.source, "--calib_images", world.images, "--save_directory", out)
    return [
        sys.executable,
        "-m",
        "quant",
        "quantize",
        *map(str, paths),
        "--anti_method",
        "m2",
        "--device_type",
        "cpu",
        "--text_tokens",
        str(QuantConfig().text_tokens),
        *flags,
    ]


def children_of(pid):
    """Process ids."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until_a_block_is_kept(job):
    """Read what a job prints up to the line of its second block, which follows the first one's commit."""
    blocks = (line for line in job.stdout if re.match(r"(visual\.blocks|model\.layers)\.\d+ .* dB", line))
    next(blocks), next(blocks)


@by_launcher
def test_a_dead_rank_ends_the_job_and_it_can_be_resumed(world, tmp_path):
    out = tmp_path / "out"
    job = subprocess.Popen(
        command(world, out, "--num_workers", "2"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until_a_block_is_kept(job)
    os.kill(children_of(job.pid)[-1], signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    lines = errors.strip().splitlines()
    assert job.returncode == 1 and len(lines) == 1, errors
    assert re.match(
        r"error: rank [01] of 2 \(process \d+\) was killed by SIGKILL, and the job ended; add --resume to go on",
        lines[0],
    )
    assert not out.exists()
    run_job(world.calibrator(), out, resume=True)
    assert digest(out) == world.reference


def test_an_error_of_several_ranks_is_told_once(world, tmp_path, monkeypatch, capfd):
    from quant.commands.cli import Guard

    source = shutil.copytree(world.source, tmp_path / "src")
    (source / "tokenizer.json").write_text("{")
    (tmp_path / "notes").mkdir()
    monkeypatch.setenv(NOTES, str(tmp_path / "notes"))

    def job():
        with Guard() as guard, joined("cpu") as ranks:
            run_job(Calibrator(source, QuantConfig(dev_type="cpu"), world.images), tmp_path / "out", ranks=ranks)
        os._exit(guard.code)

    assert in_ranks(2, job) == [1 << 8] * 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "the processor cannot be built" in lines[0], lines
    assert not (tmp_path / "out").exists()


@by_launcher
def test_an_interrupt_of_the_launcher_finishes_the_block(world, tmp_path):
    out = tmp_path / "out"
    job = subprocess.Popen(
        command(world, out, "--num_workers", "2"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not work_directory(out).exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.005)
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 130 and len(errors.strip().splitlines()) == 2, errors
    assert re.search(
        r"finishing this block; Ctrl-C again stops at once\ninterrupted; [1-4] blocks are kept in .* --resume goes on",
        errors,
    )
    run_job(world.calibrator(), out, resume=True)
    assert digest(out) == world.reference
