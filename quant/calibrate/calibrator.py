"""Calibrator: checkpoint, choices and images in; the export out. What lies between is towers.py's.

Nothing appears in the output directory before all of it is there: a run streams into a directory beside it, renamed at
the end.
"""

import json
import resource
import time
from dataclasses import replace
from pathlib import Path

import torch

from ..base.config import QuantConfig
from ..base.console import SILENT, Reporter
from ..base.errors import UsageError
from ..base.output import FILE_MODE, appearing, check_output, check_space, make_work_directory, replace_file
from ..export import formats, reader
from ..export.plan import make_plan
from ..export.recipe import RECIPE, RUN_LOG, identity, recipe
from ..export.writer import ExportWriter
from ..families import family_of
from ..files.checkpoint import Checkpoint
from ..files.config_json import write_json
from ..inputs.samples import prepare
from ..model.device import compute_dtype, export_dtype, peak_on_card, pick_device
from ..model.streamed import Skeleton
from . import vendor
from .loop import TowerRun
from .ranks import Ranks
from .resume import Work


class Calibrator:
    """Quantizes a checkpoint block after block.

    model: directory of the float checkpoint; cfg: the choices; calib_data: a folder of images, a JSONL of {"image",
    "prompt"}, a list of prepared model inputs, or None for the photographs shipped here. Choices and checkpoint are
    checked here, from headers alone; raises UsageError or QuantError.
    """

    def __init__(self, model: str | Path, cfg: QuantConfig, calib_data=None, reporter: Reporter = SILENT):
        self.config, self.calib_data, self.reporter = cfg, calib_data, reporter
        self.checkpoint = Checkpoint(model)
        self.family = family_of(self.checkpoint.config, self.checkpoint.dir)
        self.plan = make_plan(self.checkpoint, self.family, cfg)
        self.device = pick_device(cfg.dev_type)
        if cfg.engine == "msmodelslim":
            vendor.check(cfg, self.device)
        self.compute_dtype = compute_dtype(self.checkpoint.dtype, self.device)
        self.export_dtype = export_dtype(self.checkpoint.dtype, cfg.dtype, self.family.dtype)
        self.samples = None
        self.blocks: list[dict] = []
        self.seconds = 0.0
        self._work: Work | None = None
        self.ranks = Ranks()

    def prepare(self) -> None:
        """Read and encode the calibration samples, if that has not been done."""
        if self.samples is None:
            self.samples = prepare(
                self.calib_data, self.checkpoint, self.family, self.config, shared=self.ranks.size > 1
            )
            for notice in self.samples.notices:
                self.reporter.line(notice)

    @torch.inference_mode()
    def run(self, directory: str | Path | None = None, work: Work | None = None) -> "Calibrator":
        """Calibrate and round. The result streams into a new directory inside `directory` (None: the system's temporary
        one), from where save() moves it: name the parent of the final place, so that moving costs nothing. Or into
        `work`, whose job it goes on with (job.py): what was committed there stays when an error ends the run.
        """
        self.prepare()
        self._discard()
        self._work = work or Work(make_work_directory(directory))
        try:
            self._work.begin(identity(self))
            self._run(self._work)
        except BaseException:
            self._discard()
            raise
        return self

    def _run(self, work: Work) -> None:
        native = self.config.engine == "native"
        skeleton = (
            Skeleton(self.checkpoint, self.family, self.compute_dtype, self.device, self.config.trust_remote_code)
            if native
            else None
        )
        part_bytes = self.config.part_file_size * 2**30
        run = (self.checkpoint, self.family, self.plan, self.config, self.samples, skeleton, self.export_dtype)
        if self.ranks.rank > 0:
            TowerRun(*run, None, work, self.reporter, self.ranks).run()
            return
        writer = ExportWriter(
            work.export, self.checkpoint, self.plan, self.export_dtype, part_bytes, self._done(work, skeleton)
        )
        try:
            check_space(work.export, writer.nbytes * (1 if native else 2))  # the library writes an export of its own
            if native:
                TowerRun(*run, writer, work, self.reporter, self.ranks).run()
            else:
                self._run_vendor(writer, work)
            writer.finish()
        finally:
            writer.abandon()
        self.blocks, self.seconds = work.state.blocks, work.state.seconds
        self._write_records(work.export)

    def _done(self, work: Work, skeleton: Skeleton | None) -> list[str]:
        """The hub tensors that an earlier run of this job has written."""
        if work.state.outside:
            return list(self.checkpoint.tensors)
        blocks = [(tower, index) for tower in self.family.towers for index in range(work.state.done.get(tower.name, 0))]
        return [name for tower, index in blocks for name in skeleton.block_tensors(tower, index)]

    def _run_vendor(self, writer: ExportWriter, work: Work) -> None:
        """The vendor's numbers in our layout, in which scales are float32. Nothing is committed: the library does all
        blocks at once.
        """
        start = time.perf_counter()
        with vendor.vendor_export(
            self.checkpoint,
            self.plan,
            self.config,
            self.samples.inputs,
            self.export_dtype,
            self.device,
            work.dir,
            self.reporter.line,
            self.reporter.log,
        ) as export:
            for name, (dtype, _) in writer.layout.items():
                writer.put(name, export.load(name).to(dtype))
        work.state = replace(work.state, seconds=time.perf_counter() - start)

    def _write_records(self, work: Path) -> None:
        write_json(work / RECIPE, recipe(self))
        memory = {"peak_memory_bytes": peak_memory(), "peak_card_bytes": peak_on_card(self.device)}
        log = {"seconds": round(self.seconds, 1), **memory, "device": self.device, "blocks": self.blocks}
        replace_file(work / RUN_LOG, (json.dumps(log, indent=1).replace("NaN", "null") + "\n").encode())
        for name in (RECIPE, RUN_LOG):
            (work / name).chmod(FILE_MODE)

    def save(
        self, directory: str | Path, save_type: list[str] | tuple[str, ...] = ("ascendV1",), act: str | None = None
    ) -> None:
        """Put the result into `directory`, which must be absent or empty. save_type: one of formats.SAVE_TYPES, by
        default the directory for MindIE and vLLM-Ascend; act: how activations are rounded, by default as is usual for
        that format. Can be called again for another place or format.
        """
        if len(save_type) != 1:
            raise UsageError(
                f"save_type={list(save_type)}: one is needed; two formats in one directory would hold every tensor"
                " twice"
            )
        act = formats.resolve(save_type[0], act, self.plan.schemes)
        if self._work is None:
            raise UsageError("nothing to save: call run() first")
        directory = check_output(directory, self.checkpoint.dir)
        with appearing(directory, self._work.dir if self._work.keeps else None) as target:
            formats.write(reader.read(self._work.export), target, save_type[0], act)

    def close(self) -> None:
        """Remove the working copy; what was saved stays."""
        self._discard()

    def _discard(self) -> None:
        if self._work and not self._work.keeps:
            self._work.remove()
        self._work = None

    def __del__(self):
        if getattr(self, "_work", None):
            self._discard()


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
