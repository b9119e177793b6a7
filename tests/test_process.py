"""What processes are told about memory, looked at from within one: glibc's heaps, the holes in them, and the pages that
are fetched again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from quant.base.process import WAITING

ROOT = Path(__file__).resolve().parent.parent

BEGIN = """
import ctypes, json, re, resource, sys, threading
import torch
from quant.base.process import keep_freed, one_heap
libc = ctypes.CDLL(None)
class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc.mallinfo2.restype = Mallinfo
"""

HEAPS = """
if sys.argv[1] == "one":
    one_heap()
def heaps():
    libc.fopen.restype = ctypes.c_void_p
    file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
    libc.malloc_info(0, file)
    libc.fclose(file)
    return len(re.findall("<heap nr", open(sys.argv[2]).read()))
before = heaps()
all_there = threading.Barrier(5)
def job():
    kept = [torch.ones(1 << 16) for _ in range(8)]
    all_there.wait(30)
    all_there.wait(30)
threads = [threading.Thread(target=job) for _ in range(4)]
[thread.start() for thread in threads]
all_there.wait(30)
print(heaps() - before)
all_there.wait(30)
"""

HOLES = """
from types import SimpleNamespace
from pathlib import Path
from bench.hub_config import SIZES, cut
from bench.hub_tensors import tensors
from quant.families import family_of
from quant.model import empty
if sys.argv[1] == "usual":
    empty.LARGE = 1 << 60
config = cut(SIZES["llava-7b"].config, 24, 1)  # CLIP's weights have 2 and 8 MB
(Path(sys.argv[2]) / "config.json").write_text(json.dumps(config))
found = {tensor.name: SimpleNamespace(shape=tensor.shape) for tensor in tensors(config)}
checkpoint = SimpleNamespace(dir=Path(sys.argv[2]), config=config, tensors=found)
family = family_of(config, "here")
import transformers
getattr(transformers, family.architecture)
torch.empty(1 << 23), torch.empty(1 << 21)  # freed: glibc's threshold has risen
before = libc.mallinfo2().arena
model = empty.empty_model(checkpoint, family, torch.bfloat16)
assert all(parameter.is_meta for parameter in model.parameters())
assert not any(buffer.is_meta for buffer in model.buffers())
print(libc.mallinfo2().arena - before)
"""

PAGES = """
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(1 << 21), torch.ones(1 << 21)  # 4096 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: what is larger than 1 MB is fetched from the system each time
before = faults()
keep_freed()
faults()
print(json.dumps([before, faults()]))
"""

PROGRAM = """
import atexit, gc
gc.set_threshold(701, 11, 9)
registered = []
atexit.register = registered.append
def kept_of(megabytes):  # allocated piece by piece at the heap's end and freed again: how much of it stays here
    before = libc.mallinfo2().arena
    libc.malloc.restype = ctypes.c_void_p
    pieces = [libc.malloc(1 << 20) for _ in range(megabytes)]
    [libc.free(ctypes.c_void_p(piece)) for piece in reversed(pieces)]
    return libc.mallinfo2().arena - before
from quant import Calibrator, QuantConfig
seen = []
class Watched(Calibrator):
    def prepare(self, *words, **named):
        seen.append(gc.get_threshold())
        super().prepare(*words, **named)
source, images, place = sys.argv[1:]
Watched(source, QuantConfig(device_type="cpu"), images, quiet=True).run(place).save(place + "/out")
assert set(seen) == {(701, 11, 9)} and gc.get_threshold() == (701, 11, 9) and gc.get_freeze_count() == 0
assert gc.freeze not in registered
print(kept_of(120))
"""


def said(script: str, *arguments) -> int | list:
    """What `script` prints, in a process of its own."""
    command = [sys.executable, "-c", BEGIN + script, *map(str, arguments)]
    return json.loads(
        subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, capture_output=True, text=True).stdout
    )


def test_threads_share_one_heap(tmp_path):
    assert said(HEAPS, "one", tmp_path / "info") == 0
    assert said(HEAPS, "usual", tmp_path / "info") >= 1


def test_an_empty_model_leaves_no_holes(tmp_path):
    assert said(HOLES, "no holes", tmp_path) < 4_000_000
    assert said(HOLES, "usual", tmp_path) > 8_000_000


def test_pages_are_fetched_once():
    before, afterwards = said(PAGES)
    assert before > 40_000 and afterwards < 1000


def test_a_program_that_is_not_ours_keeps_its_settings(tmp_path):
    """Neither the garbage collector's nor glibc's, which would keep 128 MB of freed memory at the heap's end; by its
    own rule it keeps 64 MB at most.
    """
    source, images = tiny.make(tmp_path / "src", "qwen2_vl"), tiny.make_images(tmp_path / "images", 1)
    assert said(PROGRAM, source, images, tmp_path) < 70_000_000


WAITS = """
import os, sys
from quant.base.process import WAITING
from quant.commands import cli
with cli.Guard():
    assert "torch" not in sys.modules, "too late: OpenMP reads it when torch is imported"
    print(*(f"{name}={os.environ[name]}" for name in WAITING if name in os.environ))
"""


@pytest.mark.parametrize("users", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "9"}])
def test_threads_wait_asleep_unless_the_user_says_otherwise(users):
    environment = {name: value for name, value in os.environ.items() if name not in WAITING} | users
    done = subprocess.run(
        [sys.executable, "-c", WAITS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    expected = users or {"OMP_WAIT_POLICY": "PASSIVE"}
    assert done.stdout.split() == [f"{name}={value}" for name, value in expected.items()]
