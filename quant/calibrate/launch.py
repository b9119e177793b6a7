"""Starting one process per card: the same command again, by torch.distributed.run, in each of them.

The launcher computes nothing. It ends all ranks when one has died, and turns Ctrl-C into a file that the ranks look for
after each block, since they do not belong to the terminal's group of processes. When it is killed itself, the kernel
ends them (ranks.py).
"""

import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

from ..base.errors import QuantError
from .ranks import LAUNCHER, NOTES


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
