"""The tasks of the PP-OCR line: how images are fed, answers read and scored (task.py says what one is).

det.py    text on a page        rec.py      a line's text        cls.py    a line's or a page's orientation
table.py  a table's structure   layout.py   a page's parts       formula.py  LaTeX of a formula
"""

from ...base.errors import UsageError
from .cls import Cls
from .det import Det
from .formula import Formula
from .layout import Layout
from .rec import Rec
from .table import Table
from .task import Prepared, Signature, Task

TASKS: dict[str, Task] = {task.name: task for task in (Det(), Rec(), Cls(), Table(), Layout(), Formula())}


def task_of(signature: Signature, name: str | None, file: str) -> Task:
    """The task called `name`, or the only one that fits. Raises UsageError where it does not fit, or none does."""
    fitting = [task for task in TASKS.values() if task.name != "formula" and task.fits(signature) is None]
    if name is None:
        if not fitting:
            raise UsageError(f"{file}: outputs {signature.outputs} are of no known task; name it with --task")
        return fitting[0]
    if reason := TASKS[name].fits(signature):
        rather = f"; --task {fitting[0].name} fits" if fitting else ""
        raise UsageError(f"--task {name}: {reason}{rather}")
    return TASKS[name]


__all__ = ["TASKS", "Prepared", "Signature", "Task", "task_of"]
