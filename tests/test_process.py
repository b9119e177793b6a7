"""What processes are told about memory, looked at from within one: glibc's heaps, the holes in them, and the pages that
are fetched again.
"""

import json
import subprocess
import sys
from pathlib import Path

BEGIN = """
import ctypes, json, re, resource, sys, threading
import torch
from quant.process import no_holes, one_heap
libc = ctypes.CDLL(None)
class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
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
kept = []
def build():  # 25 tensors of 8 MB, freed, and a small one after each, which stays
    large = []
    for _ in range(25):
        large.append(torch.empty(1 << 21))
        kept.append(bytearray(2000))
torch.empty(1 << 23), torch.empty(1 << 21)  # freed: glibc's threshold has risen
before = libc.mallinfo2().arena
if sys.argv[1] == "no holes":
    with no_holes():
        build()
else:
    build()
print(libc.mallinfo2().arena - before)
"""

PAGES = """
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(1 << 21), torch.ones(1 << 21)  # 4096 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with no_holes():
    inside = faults()
faults()
print(json.dumps([inside, faults()]))
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


def test_what_is_freed_leaves_no_holes():
    assert said(HOLES, "no holes") < 2_000_000
    assert said(HOLES, "usual") > 100_000_000


def test_afterwards_pages_are_fetched_once():
    inside, afterwards = said(PAGES)
    assert inside > 40_000 and afterwards < 1000
