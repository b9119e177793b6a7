"""A whole job, from a calibrator to a finished directory, that can be interrupted, killed and resumed (work.py)."""

import fcntl
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..base.errors import QuantError, SourceError, UsageError
from ..base.output import check_output
from ..export import formats
from ..export.recipe import RUN_LOG, identity
from ..files.config_json import read_json
from .calibrator import Calibrator
from .launch import launch
from .work import Work, first_change, work_directory


@contextmanager
def job(
    calibrator: Calibrator, directory: Path, resume: bool = False, format_: str | None = None
) -> Iterator[Work | None]:
    """The Work of the job that writes `directory`, which must be absent or empty: run the calibrator on it, and on the
    first rank save the result. None when an earlier call has finished it, and nothing is left to do.

    resume: go on where an earlier call with the same arguments was cut off, or begin; format_: what will be saved
    (formats.name_of), None when the caller does not mind. Raises UsageError when such a job is there and resume is not
    set, when another process works on it, or when it had another recipe, source, calibration set or format; a
    QuantError or KeyboardInterrupt says how to resume, if there is something to resume.
    """
    ranks = calibrator.ranks
    if any(ranks.gather(ranks.rank == 0 and resume and _finished(calibrator, directory, format_))):
        calibrator.reporter.line(f"finished {directory} is complete: this job had written it, nothing is left to do")
        yield None
    elif ranks.rank > 0:
        ranks.barrier()  # until the first has the work directory
        work = Work(work_directory(directory), keeps=True)
        calibrator.prepare(work)
        yield work
        ranks.barrier()  # until it has saved the result
    else:
        check_output(directory, calibrator.checkpoint.dir)
        with working(directory, resume) as work:
            ranks.barrier()
            calibrator.prepare(work)
            yield work
            ranks.barrier()


def launch_job(calibrator: Calibrator, directory: Path, workers: int, resume: bool) -> int:
    """This command line, in `workers` processes; its exit code. What can be refused at once is refused here: raises
    UsageError for the vendor's engine, which is one process, and for an output directory that cannot be written.
    """
    if calibrator.config.engine != "native":
        raise UsageError(f"--num_workers {workers}: msmodelslim runs in one process; leave it out, and name one card")
    if not (resume and directory.exists()):
        check_output(directory, calibrator.checkpoint.dir)
    try:
        return launch(workers)
    finally:
        _remove_uncommitted(directory)


def _finished(calibrator: Calibrator, target: Path, format_: str | None) -> bool:
    """Whether `target` holds the result of this very job. Where that was killed before its work was removed, what is
    left of it goes now. Raises UsageError when it holds the result of another job.
    """
    made = read_json(target / RUN_LOG).get("identity") if (target / RUN_LOG).is_file() else None
    if not isinstance(made, dict):  # not there, or nothing that a job of this version wrote
        return False
    calibrator.prepare(finished=target)
    before, now = dict(made), identity(calibrator)
    if format_:
        before["format"], now["format"] = formats.name_in(target), format_
    if change := first_change(before, now):
        raise UsageError(f"--resume: {target} is finished, and {change}; choose an empty place for another result")
    if work_directory(target).exists():
        with working(target, resume=True):  # locked, and removed at the end
            pass
    return True


@contextmanager
def working(output: Path, resume: bool) -> Iterator[Work]:
    """The Work of the job that writes `output`, locked. At the end it is removed, but for a job that failed with blocks
    committed, or with text that the model wrote.

    Raises UsageError when another job has it, or when it holds an unfinished one and `resume` is not set.
    """
    directory = work_directory(output)
    with _locked(directory, output):
        work = Work(directory, keeps=True)
        if work.committed and not resume:
            raise UsageError(f"{work}; to start anew, remove that directory")
        try:
            if not work.committed:
                _clear(directory, {"lock", "text"} if resume else {"lock"})
            with _gentle_interrupt(work):
                yield work
            work.remove()
        except SourceError:  # another source is needed, which this work does not fit
            work.remove()
            raise
        except UsageError:
            if not work.committed:
                work.remove()
            raise
        except QuantError as err:
            raise type(err)(f"{err}; {work}" if work.worth_keeping else str(err)) from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {work}" if work.worth_keeping else "") from None
        finally:
            if not work.worth_keeping:
                work.remove()


def _remove_uncommitted(output: Path) -> None:
    """What is left of a job whose first rank was ended before it had committed anything, and so could not tidy up."""
    directory = work_directory(output)
    if directory.exists() and not any((directory / name).exists() for name in ("state", "text")):
        with _locked(directory, output):
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _locked(directory: Path, output: Path) -> Iterator[None]:
    """`directory`, made if it is not there, with its file `lock` open and locked."""
    file, handle = directory / "lock", -1
    try:
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            if directory.is_symlink():
                raise UsageError(f"{directory}: is a symbolic link, which is not written through; remove it")
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            _take(handle, file, output)
        except OSError as err:
            with suppress(OSError):
                directory.rmdir()  # if it is new
            raise UsageError(f"{file}: {err.strerror}; the job cannot keep its state there") from None
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _take(handle: int, file: Path, output: Path) -> None:
    """Lock the open file and write into it who has it. Raises UsageError when somebody has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), os.stat(file)):
            raise FileNotFoundError  # its owner has just finished and removed it
    except (BlockingIOError, FileNotFoundError):
        owner = os.pread(handle, 100, 0).decode(errors="replace")
        raise UsageError(
            f"{output}: another job ({owner or 'just started'}) is writing it; wait for it, or choose another place"
        ) from None
    with suppress(OSError):  # only a note
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)


def _clear(directory: Path, keep: set[str]) -> None:
    """What a job left that was killed before its first commit, but for the files to keep. Raises QuantError when the
    disk refuses.
    """
    try:
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in keep:
                path.unlink()
        (directory / "hidden").mkdir(mode=0o700)
    except OSError as err:
        raise QuantError(f"{directory}: {err.strerror}") from None


@contextmanager
def _gentle_interrupt(work: Work) -> Iterator[None]:
    """Ctrl-C once: work.stop, the block is finished first; twice: at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_) -> None:
        signal.signal(signal.SIGINT, before)
        work.stop = True
        print("finishing this block; Ctrl-C again stops at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
