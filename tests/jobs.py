"""A whole job as `quantize` does it, without the command line."""

from pathlib import Path

from quant.calibrate.calibrator import Calibrator
from quant.calibrate.job import job
from quant.calibrate.ranks import Ranks


def run_job(calibrator: Calibrator, directory, resume: bool = False, ranks: Ranks | None = None) -> Path:
    """Quantize and save into `directory`, going on with an earlier job if `resume`."""
    calibrator.ranks = ranks or Ranks()
    target = Path(directory).absolute()
    with job(calibrator, target, resume) as work:
        if work:
            calibrator.run(work=work)
        if work and calibrator.ranks.rank == 0:
            calibrator.save(target)
    return target
