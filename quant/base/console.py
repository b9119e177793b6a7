"""What a run tells: one aligned line per unit of work, a progress bar per tower with the time left, and the same lines
in a log file.
"""

import shutil
import time
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .errors import UsageError
from .logs import stamped

EVERY = 30.0  # seconds between the lines that say how far it is, where there is no terminal for a bar


class Reporter:
    """Prints to the terminal unless quiet, and to log_file if one is given. A progress bar only lives on a terminal.

    Raises UsageError when the log file cannot be written.
    """

    def __init__(self, quiet: bool = False, log_file: str | None = None):
        self.console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self.log = None
        if log_file:
            try:
                self.log = open(Path(log_file), "a", encoding="utf-8", buffering=1)
            except OSError as err:
                raise UsageError(f"--log_file {log_file}: {err.strerror}") from None

    def line(self, text: str = "") -> None:
        """Print a line as it is, and append it to the log file with the time."""
        self.console.print(escape(text))
        if self.log:
            self.log.write(f"{stamped(text)}\n")

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None where there is none."""
        return shutil.get_terminal_size().columns if self.console.is_terminal else None

    @contextmanager
    def progress(self, title: str, total: float):
        """Yields a function that advances by one of `total`, or by what it is given. On a terminal a bar is shown until
        the with block ends; elsewhere a line says every EVERY seconds how much is done, and about when all will be.
        """
        columns = (
            TextColumn("{task.description}"),
            BarColumn(None),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task, start = bar.add_task(title, total=total), time.monotonic()
            done, told = 0.0, start

            def advance(by: float = 1) -> None:
                nonlocal done, told
                done, now = done + by, time.monotonic()
                bar.advance(task, by)
                if not self.console.is_terminal and now - told >= EVERY and 0 < done < total:
                    told, left = now, (now - start) * (total - done) / done
                    self.line(f"{title}: {done / total:.0%} done, about {duration(left)} left")

            yield advance


SILENT = Reporter(quiet=True)


def size(nbytes: float) -> str:
    """1234567890 -> "1.23 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes:.0f} B"


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
