"""A whole job, from a calibrator to a finished directory, that can be interrupted, killed and resumed (resume.py)."""

from pathlib import Path

from ..base.errors import UsageError
from ..base.output import check_output
from ..export.recipe import RECIPE, recipe
from ..files.config_json import read_json
from .calibrator import Calibrator
from .launch import launch
from .ranks import Ranks
from .resume import Work, remove_uncommitted, work_directory, working
from .summary import header, summary


def run_job(
    calibrator: Calibrator,
    directory: str | Path,
    save_type: str = "ascendV1",
    act: str | None = None,
    resume: bool = False,
    ranks: Ranks = Ranks(),
) -> Path:
    """Quantize and save into `directory`, which must be absent or empty; returns it as an absolute path.

    resume: go on where an earlier call with the same arguments was cut off, or begin. Raises UsageError when such a job
    is there and resume is not set, when another process works on it, or when it had another recipe, source or
    calibration set; a QuantError or KeyboardInterrupt says how to resume, if there is something to resume. ranks: the
    processes that share the work (launch.joined).
    """
    target, calibrator.ranks = Path(directory).absolute(), ranks
    if any(ranks.gather(ranks.rank == 0 and resume and _finished(calibrator, target))):
        calibrator.reporter.line(f"resumed  {directory} was complete already")
        return target
    if ranks.rank > 0:
        ranks.barrier()  # until the first has the work directory
        calibrator.run(work=Work(work_directory(target), keeps=True))
        ranks.barrier()  # until it has saved the result
        return target
    check_output(target, calibrator.checkpoint.dir)
    with working(target, resume) as work:
        ranks.barrier()
        header(calibrator)
        calibrator.run(work=work)
        calibrator.save(target, [save_type], act)
        ranks.barrier()
    summary(calibrator, target)
    return target


def launch_job(calibrator: Calibrator, directory: str | Path, workers: int, resume: bool) -> int:
    """This command line, in `workers` processes; its exit code. What can be refused at once is refused here."""
    target = Path(directory).absolute()
    if calibrator.config.engine != "native":
        raise UsageError(f"--num_workers {workers}: msmodelslim runs in one process; leave it out, and name one card")
    if not (resume and target.exists()):
        check_output(target, calibrator.checkpoint.dir)
    try:
        return launch(workers)
    finally:
        remove_uncommitted(target)


def _finished(calibrator: Calibrator, target: Path) -> bool:
    """Whether a job was killed after its result had taken its place and before its work was removed. What is left of
    that goes now.
    """
    recipe_file = target / RECIPE
    if not work_directory(target).exists() or not recipe_file.exists():
        return False
    calibrator.prepare()
    if read_json(recipe_file) != recipe(calibrator):
        return False
    with working(target, resume=True):  # locked, and removed at the end
        return True
