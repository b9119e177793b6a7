"""Start and end of a job's processes (ranks), one per card, over the host's cards or over several hosts.

The launcher runs its own command line again, by torch.distributed.run, once per card, and computes nothing itself. It
ends all ranks when one has died, and turns Ctrl-C into a file that the ranks look for after each block, since they do
not belong to the terminal's group of processes. When it is killed itself, the kernel ends them. Ranks on several hosts
are started by the user, with torchrun.
"""

import ctypes
import gc
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from ..base.errors import QuantError
from ..model.device import distributed_backend, use_card
from .ranks import Ranks, connected

TIMEOUT = timedelta(days=1)  # of an exchange: a slow rank is no error, and one that dies is noticed by the launcher
NOTES = "QUANT_LAUNCHER_DIR"  # environment: a directory for notes between launcher and ranks, on one host
LAUNCHER = "QUANT_LAUNCHER_PID"  # environment: the launcher's process id, unless the user started torchrun
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def launch(workers: int) -> int:
    """Run this process's command line in `workers` ranks; 0, or the exit code of the rank that failed and has said why.

    Raises QuantError when a rank was killed, which cannot say anything.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the ranks say what there is to say, in one line
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    os.environ[LAUNCHER] = str(os.getpid())
    options = [
        "--standalone",
        f"--nproc-per-node={workers}",
        "--max-restarts=0",
        "--signals-to-handle=SIGTERM,SIGHUP,SIGQUIT",
    ]
    with tempfile.TemporaryDirectory(prefix="quant-") as os.environ[NOTES]:
        before = signal.signal(signal.SIGINT, _ask_to_stop)
        try:
            run(parse_args([*options, *_command()]))
        except ChildFailedError as err:
            rank, failure = err.get_first_failure()
            if failure.exitcode < 0:
                killer = signal.Signals(-failure.exitcode).name
                raise QuantError(
                    f"rank {rank} of {workers} (process {failure.pid}) was killed by {killer}, and the job ended; add"
                    " --resume to go on"
                ) from None
            return failure.exitcode
        finally:
            signal.signal(signal.SIGINT, before)
    return 0


def _ask_to_stop(*_) -> None:
    """Ctrl-C once: a file. Twice: KeyboardInterrupt, on which torch's agent ends the ranks."""
    (Path(os.environ[NOTES]) / "stop").touch()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("finishing this block; Ctrl-C again stops at once", file=sys.stderr)


def _command() -> list[str]:
    """What started this process, as torch.distributed.run takes it: a script, or a module by name."""
    spec = sys.modules["__main__"].__spec__
    return ["--module", spec.name.removesuffix(".__main__"), *sys.argv[1:]] if spec else list(sys.argv)


# -- in a rank


def stop_asked() -> bool:
    """Whether Ctrl-C reached the launcher."""
    return NOTES in os.environ and os.path.exists(os.path.join(os.environ[NOTES], "stop"))


def _already_reported() -> bool:
    """Whether another rank has reported an error to the user; if not, this one is to."""
    try:
        os.close(os.open(os.path.join(os.environ[NOTES], "reported"), os.O_CREAT | os.O_EXCL))
    except (KeyError, FileNotFoundError):
        return False  # not our launcher, which would have made a place for the note
    except FileExistsError:
        return True
    return False


def _end_with_launcher() -> None:
    """Have the kernel kill this process when its parent, the launcher, dies: a launcher that was killed can end nobody.

    Raises QuantError when it is dead already.
    """
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        raise QuantError("the launcher has ended, and so does this rank")


def started_by_launcher() -> bool:
    """Whether this process is a rank: torch.distributed.run's environment says so."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The Ranks that this process belongs to; alone, if torch.distributed.run did not start it.

    Of an error that several of them meet, the first is reported; the others exit in silence, with its exit code:
    raises SystemExit there.
    """
    if not started_by_launcher() or os.environ["WORLD_SIZE"] == "1":
        yield Ranks()
        return
    # Imported now: later, its functions' default arguments would hold the group that exists then, for ever.
    import torch.distributed.nn  # noqa: F401
    from torch import distributed

    rank = int(os.environ["RANK"])
    _end_with_launcher()
    use_card(device, int(os.environ["LOCAL_RANK"]))
    try:
        with connected():
            distributed.init_process_group(distributed_backend(device), timeout=TIMEOUT)
            ranks = Ranks(
                rank,
                int(os.environ["WORLD_SIZE"]),
                *(distributed.new_group(backend="gloo", timeout=TIMEOUT) for _ in range(2)),
            )
        yield ranks
        with connected():
            distributed.destroy_process_group()
        # A group's threads end when nothing refers to it. Left to the interpreter's end, about one job in 40 ended with
        # SIGABRT there.
        ranks.objects = ranks.commits = None
        gc.collect()
    except QuantError as err:
        if _already_reported():
            raise SystemExit(err.exit_code) from None
        raise
    except KeyboardInterrupt:
        if rank > 0:
            raise SystemExit(130) from None
        raise
