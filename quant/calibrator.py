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
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from . import ascend
from .block import BlockQuantizer, BlockResult
from .checkpoint import Checkpoint
from .config import QuantConfig
from .console import SILENT, Reporter
from .device import compute_dtype, export_dtype, pick_device
from .errors import QuantError, UsageError
from .families import family_of
from .family import Tower
from .plan import make_plan
from .recipe import RECIPE, RUN_LOG, recipe, settings
from .samples import prepare
from .skeleton import Feed, Skeleton

LAYOUTS = ("ascendV1", "mindie")


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
        self.compute_dtype = compute_dtype(self.checkpoint.dtype, self.device)
        self.export_dtype = export_dtype(self.checkpoint.dtype, cfg.dtype)
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
        skeleton = Skeleton(self.checkpoint, self.family, self.compute_dtype, self.device, self.config.trust_remote_code)
        self._discard()
        work = _make_work_directory(directory)
        writer = None
        try:
            writer = ascend.ExportWriter(work, self.checkpoint, self.plan, self.export_dtype, self.config.part_file_size * 2**30)
            _check_space(work, writer.nbytes)
            with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as committer:
                outputs: dict[str, list[Tensor]] = {}
                for tower in self.family.towers:
                    outputs[tower.name] = self._run_tower(skeleton, tower, outputs, writer, reader, committer)
            writer.copy_pending()
            self.seconds = time.perf_counter() - start
            writer.finish("ascendV1", settings(self.config))
            self._write_records(work)
        except BaseException:
            if writer:
                writer.abandon()
            shutil.rmtree(work, ignore_errors=True)
            raise
        self._work = work
        return self

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

    def save(self, directory: str | Path, save_type: list[str] | tuple[str, ...] = ("ascendV1",)) -> None:
        """Put the result into `directory`, which must be absent or empty. save_type: ["ascendV1"] for MindIE and vLLM-Ascend, or
        ["mindie"] for the names that older MindIE releases look for. Can be called again for another place or layout."""
        if len(save_type) != 1 or save_type[0] not in LAYOUTS:
            raise UsageError(f"save_type={list(save_type)}: one of {', '.join(LAYOUTS)} is needed; two layouts in one directory would hold every tensor twice")
        if self._work is None:
            raise UsageError("nothing to save: call run() first")
        directory = check_output(directory, self.checkpoint.dir)
        target = Path(tempfile.mkdtemp(prefix=f"{directory.name}.partial-", dir=directory.parent))
        try:
            for file in self._work.iterdir():
                _link_or_copy(file, target / file.name)
            if save_type[0] != "ascendV1":
                ascend.relayout(target, self.checkpoint, self.plan, self.export_dtype, save_type[0], settings(self.config))
            target.chmod(ascend.DIR_MODE)
            ascend.sync_directory(target)
            target.rename(directory)
            ascend.sync_directory(directory.parent)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise

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


def check_output(directory: str | Path, source: Path) -> Path:
    """Raises UsageError unless `directory` is absent or empty, outside the source, and can be made."""
    directory, source = Path(directory).absolute(), source.resolve()
    resolved = directory.resolve()
    if resolved == source or source in resolved.parents or resolved in source.parents:
        raise UsageError(f"{directory}: overlaps the source {source}, which is never written to; choose a place outside it")
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory}: is a file; --save_directory names a directory that is empty or not there yet")
    if directory.is_dir() and any(directory.iterdir()):
        raise UsageError(f"{directory}: is not empty, {sorted(path.name for path in directory.iterdir())[0]} is in it; servers load every weight file they find, so choose an empty place")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=directory.parent):
            pass
    except OSError as err:
        raise UsageError(f"{directory.parent}: {err.strerror}; --save_directory must be in a place that can be written to") from None
    return directory


def _make_work_directory(parent: str | Path | None) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=".quant-work-", dir=parent))
    except OSError as err:
        raise UsageError(f"{parent}: {err.strerror}; the result cannot be written there") from None


def _check_space(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise QuantError(f"{directory.parent}: {free / 1e9:.2f} GB free, the result takes {needed / 1e9:.2f} GB; choose another --save_directory")


def _link_or_copy(source: Path, target: Path) -> None:
    """A weight file is shared where the file system can; a small one is copied, since another layout edits it."""
    if source.suffix == ".safetensors":
        try:
            target.hardlink_to(source)
            return
        except OSError:
            pass
    shutil.copy2(source, target)


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
