"""What a process that is ours, the command line's, is told before it begins: how to keep memory, how to wait, and when
not to tidy up. A program that imports `quant` is not ours, and nothing here is called in it: glibc's settings cannot be
read, so they could not be put back.

Left out: the number of threads, which is the user's (OMP_NUM_THREADS).
"""

import atexit
import ctypes
import gc
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h's
MB = 1 << 20


def at_work() -> None:
    """Call first in a process that is ours, and nowhere else: it holds to the process's end. A million objects of
    imported libraries are not worth a look while they are made, nor when the process ends: 1.4 of 5 seconds.
    """
    gc.set_threshold(200_000)
    atexit.register(gc.freeze)
    one_heap()
    keep_freed()
    wait_asleep()


def one_heap() -> None:
    """Let all threads share glibc's one heap. By default they have heaps of their own, up to eight per core, none of
    which uses what another has freed, while a block is read by one thread, computed by others and written by a third.
    """
    _mallopt({M_ARENA_MAX: 1})


WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # of OpenMP, GNU's and LLVM's


def wait_asleep() -> None:
    """Let OpenMP's threads sleep while they wait for one another, unless the user has said how they are to wait; to be
    called before torch is imported, for OpenMP reads it once. By itself it has them spin for milliseconds, at the end
    of each of thousands of small operations: beside other load, on the core that the thread they wait for needs.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def keep_freed() -> None:
    """Keep freed memory, for what comes next is of the same sizes: all but the largest tensors (32 MB, the most that
    glibc takes), and up to 128 MB at the heap's end. Else every tensor would be fetched from the system page by page.
    """
    _mallopt({M_MMAP_THRESHOLD: 32 * MB, M_TRIM_THRESHOLD: 128 * MB})


def _mallopt(options: dict[int, int]) -> None:
    try:
        libc = ctypes.CDLL(None)
        for option, value in options.items():
            libc.mallopt(option, value)
    except (AttributeError, OSError):  # another C library
        pass
