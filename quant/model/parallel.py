"""Threads on a CPU: several samples at once, and reading and writing in the background.

Several samples at once, each with its share of the threads, in place of one at a time with all of them. One sample's
operations are too small to keep all threads busy to the end of each; several samples are. An export is the same bit for
bit with 1, 2 and 3 threads on the CPUs tried (tests compare): the products' order of summation did not depend on them.
On a card samples go one by one.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

AT_ONCE = 4  # at most: each needs memory for its own intermediate results


def in_parallel(job: Callable, arguments: Iterable[tuple], device: torch.device) -> None:
    """job(*arguments) for each of `arguments`, in any order. Raises what the first of them to fail raised."""
    arguments, threads = list(arguments), torch.get_num_threads()
    at_once = min(AT_ONCE, threads, len(arguments)) if device.type == "cpu" else 1
    if at_once <= 1:
        for each in arguments:
            job(*each)
        return
    failed = threading.Event()

    def one(each: tuple) -> None:
        if failed.is_set():
            return
        try:
            with torch.inference_mode():
                job(*each)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(
        at_once, "sample", initializer=torch.set_num_threads, initargs=(threads // at_once,)
    ) as pool:
        done = [pool.submit(one, each) for each in arguments]
    torch.set_num_threads(threads)  # what new threads begin with; this one's was never changed
    for future in done:
        future.result()


def background_thread(name: str) -> ThreadPoolExecutor:
    """A pool of one thread, for reading and writing while the caller's thread computes; what it does with torch, it
    does alone.

    It must not have OpenMP threads of its own: with more of them in a process than it has cores, libgomp's threads
    sleep between any two operations instead of waiting for the next, and each of the caller's many small ones takes 50
    us more.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, name)
    pool.submit(_use_one_thread).result()
    torch.set_num_threads(threads)  # what new threads begin with
    return pool


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread takes the number over when it first asks for it
