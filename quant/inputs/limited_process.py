"""A job in a child process with limits on its time and memory: for what a stranger's chat template, tokenizer file or
video asks to be done.

Jinja's sandbox keeps a template from files and from Python, not from time and memory: it ends one range() at 100,000
numbers, but neither two loops inside each other, nor 'x' * 10**10, nor the comparison of two lists that hold each other
50 times over. The last runs in C, where no signal handler and no exception ends it; what the Rust of a tokenizer cannot
allocate ends the process. Hence a fork, which has all imports done (some milliseconds), and SIGKILL. It guards time
and memory only: the job can read what this process can read.
"""

import os
import resource
import select
import signal
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from ..base.errors import QuantError

SECONDS = 20  # of wall time
MEMORY = 1 << 30  # bytes beyond what this process has
MAX_ANSWER = 1 << 20  # bytes


class JobFailed(Exception):
    """The job raised an error itself, within its limits: one line with its class and text."""


def run_with_limits(job: Callable[[], str], seconds: float | None = None) -> str:
    """job() in a fork of this process; its answer, at most MAX_ANSWER bytes. seconds: wall time, None for SECONDS.

    Raises QuantError, without a file's name, when it takes more than it may, and JobFailed with the text of what it
    raised.
    """
    seconds = SECONDS if seconds is None else seconds
    child, reading = _fork(lambda handle: _answer(job, handle), seconds)
    try:
        answer = _read(reading, seconds)
    finally:
        _end(child, reading)
    if answer is None:
        raise QuantError(f"took more than {seconds:g} s")
    if not answer:
        raise QuantError(f"took more than {MEMORY >> 20} MiB, or crashed")
    if len(answer) > MAX_ANSWER:
        raise QuantError(f"gave more than {MAX_ANSWER} bytes of text")
    text = answer[1:].decode("utf-8", "surrogatepass")
    if answer[:1] != b"+":
        raise JobFailed(text)
    return text


def stream_with_limits(
    job: Callable[[Callable[[bytes], None]], None], seconds: float, longest: float, largest: int
) -> Iterator[bytes]:
    """What job(send) sends from a fork of this process, message by message, each at most `largest` bytes; no more than
    one lies ahead of the reader. seconds: wall time from one message to the next, longest: of the whole job.

    Raises QuantError, without a file's name, when it takes more than it may, and JobFailed with the text of what it
    raised. When the reader stops, the job ends.
    """
    child, reading = _fork(lambda handle: _send(job, handle), longest)
    end = time.monotonic() + longest
    try:
        while True:
            head = _exactly(reading, 9, min(time.monotonic() + seconds, end))
            kind, size = struct.unpack("<cQ", head)
            if size > largest:
                raise QuantError(f"gave {size} bytes at once, {largest} are the most")
            message = _exactly(reading, size, min(time.monotonic() + seconds, end))
            if kind == b"-":
                raise JobFailed(message.decode("utf-8", "replace"))
            if kind == b".":
                return
            yield message
    except TimeoutError:
        raise QuantError(f"took more than {seconds:g} s for a step, or {longest:g} s in all") from None
    except EOFError:
        raise QuantError(f"took more than {MEMORY >> 20} MiB, or crashed") from None
    finally:
        _end(child, reading)


def _exactly(handle: int, size: int, deadline: float) -> bytes:
    """So many bytes out of a pipe. Raises TimeoutError, EOFError."""
    data = bytearray()
    while len(data) < size:
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        piece = os.read(handle, min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _send(job: Callable[[Callable[[bytes], None]], None], handle: int) -> None:
    def send(message: bytes, kind: bytes = b"+") -> None:
        pipe.write(struct.pack("<cQ", kind, len(message)))
        pipe.write(message)
        pipe.flush()

    with os.fdopen(handle, "wb", closefd=False) as pipe:
        try:
            job(send)
            send(b"", b".")
        except MemoryError:
            pass
        except BaseException as error:
            send(_told(error), b"-")


def _fork(work: Callable[[int], None], seconds: float) -> tuple[int, int]:
    """A child that does work(handle of a pipe to write to) with limits and ends -> (child, handle to read from)."""
    # A tokenizer's threads are not in a fork, and without this word it says so on stderr in each.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12's, of threads beside a fork: the child waits for none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.close(reading)  # so that the child's writing fails when the parent is gone
            _limits(seconds)
            work(writing)
        finally:
            os._exit(0)
    os.close(writing)
    return child, reading


def _end(child: int, reading: int) -> None:
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _read(handle: int, seconds: float) -> bytes | None:
    """What comes out of a pipe before it ends or holds too much; None when the time is over first."""
    data, deadline = b"", time.monotonic() + seconds
    while len(data) <= MAX_ANSWER:
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        piece = os.read(handle, 1 << 16)
        if not piece:
            break
        data += piece
    return data


def _answer(job: Callable[[], str], handle: int) -> None:
    """In the child: + and the text, or - and the error; nothing at all for a job that found no memory."""
    answer = b""
    try:
        answer = b"+" + job().encode("utf-8", "surrogatepass")
    except MemoryError:
        pass
    except BaseException as error:  # what Rust panics with is no Exception
        answer = b"-" + _told(error)
    with os.fdopen(handle, "wb", closefd=False) as pipe:
        pipe.write(answer)


def _told(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {str(error)[:300]}".encode("utf-8", "replace")


def _limits(seconds: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not in a fork
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY)
    _limit(resource.RLIMIT_CPU, int(seconds) + 2)  # should the parent die first
    _limit(resource.RLIMIT_CORE, 0)


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
