"""The Calibrator of a Python program: `from quant import Calibrator`.

It is that of calibrate/, and tells on the terminal what the command line tells: what will be done, every block, what
came of it, and what the servers would say to the saved directory. It stands above the rooms because it needs two of
them that know nothing of each other, the calibration and the servers' rules.
"""

from pathlib import Path

import torch

from .base.config import QuantConfig
from .base.console import Reporter
from .calibrate import calibrator
from .calibrate.summary import header, summary
from .calibrate.work import Work
from .commands.export import verdict
from .export.formats import resolve


class Calibrator(calibrator.Calibrator):
    """Quantizes a checkpoint block after block.

        Calibrator(SRC, QuantConfig(anti_method="m4"), "calibImages").run().save(OUT)

    model: directory of the float checkpoint; cfg: the choices; calib_data: a folder of images, a file of images,
    prompts and answers, a list of prepared model inputs, which is taken as it is, or None for the photographs shipped
    here. quiet: print nothing; reporter: where else to print to. Choices and checkpoint are checked here, from headers
    alone; raises UsageError or QuantError.
    """

    def __init__(
        self,
        model: str | Path,
        cfg: QuantConfig,
        calib_data=None,
        reporter: Reporter | None = None,
        *,
        quiet: bool = False,
    ):
        super().__init__(model, cfg, calib_data, reporter or Reporter(quiet))
        self._in_job = False

    def run(self, directory: str | Path | None = None, work: Work | None = None) -> "Calibrator":
        """Calibrate and round, as calibrate/calibrator.py says."""
        self._in_job = work is not None  # a job (job.py) tells of itself, and its caller checks
        if not self._in_job:
            header(self)
        super().run(directory, work)
        return self

    def save(
        self, directory: str | Path, save_type: list[str] | tuple[str, ...] = ("ascendV1",), act: str | None = None
    ) -> None:
        """Put the result into `directory`, as calibrate/calibrator.py says, and check it there: raises QuantError when
        it is written, but a server that the format is for would not serve it.
        """
        super().save(directory, save_type, act)
        if self._in_job:
            return
        target = Path(directory).absolute()
        summary(self, target)
        if self.export_dtype == torch.float32:
            self.reporter.line("check    left out: a float32 export is for comparing, no server takes it")
        else:
            verdict(target, None, save_type[0], resolve(save_type[0], act, self.plan.schemes), self.reporter.line)
