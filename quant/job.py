"""A whole job, from a calibrator to a finished directory, that can be interrupted, killed and resumed (resume.py)."""
from pathlib import Path

from .calibrator import Calibrator
from .config_json import read_json
from .output import check_output
from .recipe import RECIPE, recipe
from .resume import work_directory, working
from .summary import header, summary


def run_job(calibrator: Calibrator, directory: str | Path, save_type: str = "ascendV1", act: str | None = None, resume: bool = False) -> Path:
    """Quantize and save into `directory`, which must be absent or empty; returns it as an absolute path.

    resume: go on where an earlier call with the same arguments was cut off, or begin. Raises UsageError when such a job is there and
    resume is not set, when another process works on it, or when it had another recipe, source or calibration set; a QuantError or
    KeyboardInterrupt says how to resume, if there is something to resume.
    """
    if resume and _finished(calibrator, Path(directory).absolute()):
        calibrator.reporter.line(f"resumed  {directory} was complete already")
        return Path(directory).absolute()
    target = check_output(directory, calibrator.checkpoint.dir)
    with working(target, resume) as work:
        header(calibrator)
        calibrator.run(work=work)
        calibrator.save(target, [save_type], act)
    summary(calibrator, target)
    return target


def _finished(calibrator: Calibrator, target: Path) -> bool:
    """Whether a job was killed after its result had taken its place and before its work was removed. What is left of that goes now."""
    recipe_file = target / RECIPE
    if not work_directory(target).exists() or not recipe_file.exists():
        return False
    calibrator.prepare()
    if read_json(recipe_file) != recipe(calibrator):
        return False
    with working(target, resume=True):  # locked, and removed at the end
        return True
