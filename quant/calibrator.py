"""Calibrator: the loop over towers and blocks, between the disk and block.py.

    for each tower, for each block:   read it (while the one before computes)
                                      observe, smooth, round, measure        (block.py)
                                      write it (while the next one computes)
    then carry over what stands outside the blocks, and put the finished directory in its place.

Nothing appears in the output directory before all of it is there: a run streams into a directory beside it, renamed at the end.
"""
import json
import resource
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from . import ascend, formats, vendor
from .block import BlockQuantizer, BlockResult
from .checkpoint import Checkpoint
from .config import QuantConfig
from .console import SILENT, Reporter
from .device import compute_dtype, export_dtype, pick_device
from .errors import UsageError
from .families import family_of
from .family import Tower
from .output import appearing, check_output, check_space, make_work_directory
from .plan import make_plan
from .recipe import RECIPE, RUN_LOG, recipe
from .samples import prepare
from .skeleton import Feed, Skeleton


class Calibrator:
    """Quantizes a checkpoint block after block.

    model: directory of the float checkpoint; cfg: the choices; calib_data: a folder of images, a JSONL of {"image", "prompt"}, a list of
    prepared model inputs, or None for the photographs shipped here. Choices and checkpoint are checked here, from headers alone;
    raises UsageError or QuantError.
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
        self._work: Path | None = None

    def prepare(self) -> None:
        """Read and encode the calibration samples, if that has not been done."""
        if self.samples is None:
            self.samples = prepare(self.calib_data, self.checkpoint, self.family, self.config)
            for notice in self.samples.notices:
                self.reporter.line(notice)

    @torch.inference_mode()
    def run(self, directory: str | Path | None = None) -> "Calibrator":
        """Calibrate and round. The result streams into a new directory inside `directory` (None: the system's temporary one), from
        where save() moves it: name the parent of the final place, so that moving costs nothing."""
        self.prepare()
        start = time.perf_counter()
        self._discard()
        work = make_work_directory(directory)
        writer = None
        try:
            writer = ascend.ExportWriter(work, self.checkpoint, self.plan, self.export_dtype, self.config.part_file_size * 2**30)
            check_space(work, writer.nbytes * (2 if self.config.engine == "msmodelslim" else 1))  # the library writes an export of its own
            if self.config.engine == "msmodelslim":
                self._run_vendor(work, writer)
            else:
                self._run_towers(writer)
            self.seconds = time.perf_counter() - start
            writer.finish()
            self._write_records(work)
        except BaseException:
            if writer:
                writer.abandon()
            shutil.rmtree(work, ignore_errors=True)
            raise
        self._work = work
        return self

    def _run_towers(self, writer: ascend.ExportWriter) -> None:
        skeleton = Skeleton(self.checkpoint, self.family, self.compute_dtype, self.device, self.config.trust_remote_code)
        outputs: dict[str, list[Tensor]] = {}
        with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as committer:
            for tower in self.family.towers:
                outputs[tower.name] = self._run_tower(skeleton, tower, outputs, writer, reader, committer)
        writer.copy_pending()

    def _run_vendor(self, work: Path, writer: ascend.ExportWriter) -> None:
        """The vendor's numbers in our layout, in which scales are float32."""
        with vendor.vendor_export(
            self.checkpoint, self.plan, self.config, self.samples.inputs, self.export_dtype, self.device, work, self.reporter.line, self.reporter.log
        ) as export:
            for name, (dtype, _) in writer.layout.items():
                writer.put(name, export.load(name).to(dtype))

    def _run_tower(self, skeleton: Skeleton, tower: Tower, outputs: dict, writer, reader: ThreadPoolExecutor, committer: ThreadPoolExecutor) -> list[Tensor]:
        used = tower.used(self.checkpoint.config)
        quantizer = BlockQuantizer(skeleton, tower, self.plan, self.config, self.export_dtype, self.samples.keys)
        coming = reader.submit(self._load, skeleton, tower, 0)
        feeds: list[Feed] = []
        written: Future | None = None
        with self.reporter.progress(f"{tower.name} tower", used) as advance:
            for index in range(used):
                start = time.perf_counter()
                tensors = coming.result()
                if index + 1 < used:
                    coming = reader.submit(self._load, skeleton, tower, index + 1)
                for name, tensor in tensors.items():
                    skeleton.set(name, tensor)
                if index == 0:
                    feeds = skeleton.enter(tower, self.samples.inputs, outputs)
                result = quantizer(index, feeds)
                skeleton.clear(tensors)
                if written:
                    written.result()
                written = committer.submit(_commit, writer, tensors, result)
                self._report_block(tower.block(index)[:-1], result, time.perf_counter() - start)
                advance()
            if written:
                written.result()
        return [feed.hidden for feed in feeds]

    def _load(self, skeleton: Skeleton, tower: Tower, index: int) -> dict[str, Tensor]:
        return {name: self.checkpoint.load(name) for name in skeleton.block_tensors(tower, index)}

    def _report_block(self, name: str, result: BlockResult, seconds: float) -> None:
        if not result.linears:
            change = "float"
        elif self.config.anti_method == "none":
            change = f"{result.snr:5.1f} dB"
        else:
            change = f"{result.snr_plain:5.1f} -> {result.snr:5.1f} dB"
        self.reporter.line(f"{name:<43} {len(result.linears):>2} int8  {change:<17} {seconds:7.2f} s")
        self.blocks.append(
            {
                "block": name,
                "int8": [linear.name for linear in result.linears],
                "snr_plain_db": result.snr_plain,
                "snr_db": result.snr,
                "ranges": [asdict(entry) for entry in result.ranges],
                "seconds": round(seconds, 3),
            }
        )

    def _write_records(self, work: Path) -> None:
        ascend.write_json(work / RECIPE, recipe(self))
        log = {"seconds": round(self.seconds, 1), "peak_memory_bytes": peak_memory(), "device": self.device, "blocks": self.blocks}
        (work / RUN_LOG).write_text(json.dumps(log, indent=1).replace("NaN", "null") + "\n")
        for name in (RECIPE, RUN_LOG):
            (work / name).chmod(ascend.FILE_MODE)

    def save(self, directory: str | Path, save_type: list[str] | tuple[str, ...] = ("ascendV1",), act: str | None = None) -> None:
        """Put the result into `directory`, which must be absent or empty. save_type: one of formats.SAVE_TYPES, by default the directory
        for MindIE and vLLM-Ascend; act: how activations are rounded, by default as is usual for that format. Can be called again for
        another place or format."""
        if len(save_type) != 1:
            raise UsageError(f"save_type={list(save_type)}: one is needed; two formats in one directory would hold every tensor twice")
        act = formats.resolve(save_type[0], act)
        if self._work is None:
            raise UsageError("nothing to save: call run() first")
        directory = check_output(directory, self.checkpoint.dir)
        with appearing(directory) as target:
            formats.write(ascend.read(self._work), target, save_type[0], act)

    def close(self) -> None:
        """Remove the working copy; what was saved stays."""
        self._discard()

    def _discard(self) -> None:
        if self._work:
            shutil.rmtree(self._work, ignore_errors=True)
            self._work = None

    def __del__(self):
        if getattr(self, "_work", None):
            self._discard()


def _commit(writer: ascend.ExportWriter, tensors: dict[str, Tensor], result: BlockResult) -> None:
    """Write one block: its int8 linears, what folding changed, and the rest as it was."""
    done = set()
    for linear in result.linears:
        writer.put_linear(linear)
        done |= {f"{linear.name}.weight", f"{linear.name}.bias"}
    for name, tensor in tensors.items():
        if name not in done:
            writer.put_float(name, result.floats.get(name, tensor))


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
