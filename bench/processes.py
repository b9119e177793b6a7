"""One measured process: a command from its start to its exit."""

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Took:
    """seconds: wall time; cpu: user and system seconds, of all processes that it waited for; peak: largest resident
    bytes of one of them.
    """

    seconds: float
    cpu: float
    peak: int


def measure(command: list, log: Path, **environment: str) -> Took:
    """Run it to its end, output to `log`. environment: variables beside those of this process.

    Raises SystemExit, with the log's last lines, when it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=output,
            stderr=output,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise SystemExit(f"error: exit {process.returncode} of {' '.join(map(str, command))}\n{tail}")
    return Took(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
