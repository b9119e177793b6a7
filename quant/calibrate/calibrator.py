"""Calibrator: checkpoint, choices and images in; the export out. Its run() is the loop:

    for each tower, for each block:   read it                            (disk.py, while the one before computes)
                                      observe, smooth, round, measure    (block.py)
                                      let the samples walk on            (model/paused.py)
                                      write and commit it                (disk.py, while the next one computes)

Nothing appears in the output directory before all of it is there: a run streams into a directory beside it, renamed at
the end.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..base.config import QuantConfig
from ..base.console import SILENT, Reporter
from ..base.errors import UsageError
from ..base.output import appearing, check_output, check_space, make_work_directory
from ..export import formats, reader
from ..export.plan import make_plan
from ..export.recipe import identity
from ..export.writer import ExportWriter
from ..families import family_of
from ..families.family import Tower
from ..files.checkpoint import Checkpoint
from ..inputs.calibration_set import CalibrationSet
from ..inputs.samples import prepare
from ..model.device import compute_dtype, export_dtype, pick_device
from ..model.paused import Key, Passed, Walk
from ..model.streamed import StreamedModel
from . import vendor
from .block import BlockQuantizer
from .disk import Disk
from .launch import stop_asked
from .memory import on_cpu, out_of_memory_named
from .observe import refuse_unseen, rows_and_doubt
from .own_text import OwnText, writer_of
from .ranks import NoMemory, Ranks
from .record import block_entry, block_line, write_records
from .work import Work


class Calibrator:
    """Quantizes a checkpoint block after block.

    model: directory of the float checkpoint; cfg: the choices; calib_data: what inputs/sources.py reads, a list of
    prepared model inputs, which is taken as it is, or None for the photographs shipped here. Choices and checkpoint
    are checked here, from headers alone; raises UsageError or QuantError.
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
        self._samples: CalibrationSet | None = None
        self.own_text: OwnText | None = None
        self.blocks: list[dict] = []
        self.seconds = 0.0
        self._work: Work | None = None
        self._own: dict[int, dict[str, Tensor]] | None = None
        self.ranks = Ranks()

    def prepare(self, work: Work | None = None, finished: Path | None = None) -> None:
        """Read and encode the samples, once. work: keeps what the model itself writes for them; finished: an export
        that has it.
        """
        if self._samples is None:
            shared, write = self.ranks.size > 1, writer_of(self, work, finished)
            what = self.calib_data, self.checkpoint, self.family, self.config, shared
            self._samples = prepare(*what, write=write, apart=self.config.engine == "native" and self.ranks.rank == 0)
            for notice in self._samples.notices:
                self.reporter.line(notice)

    @property
    def samples(self) -> CalibrationSet:
        """The calibration samples. Raises UsageError before prepare()."""
        if self._samples is None:
            raise UsageError("the calibration samples have not been read: call prepare() or run() first")
        return self._samples

    @torch.inference_mode()
    def run(self, directory: str | Path | None = None, work: Work | None = None) -> "Calibrator":
        """Calibrate and round: the data's way through the model, once.

        The result streams into a new directory inside `directory` (None: the system's temporary one), from where save()
        moves it: name the parent of the final place, so that moving costs nothing. Or into `work`, whose job it goes on
        with (job.py): what was committed there stays when an error ends the run.

        Raises QuantError; KeyboardInterrupt, after a commit, when the work is asked to stop.
        """
        self.prepare(work)
        self._discard()
        self._work = work = work or Work(make_work_directory(directory))
        try:
            work.begin(identity(self))
            if self.config.engine == "msmodelslim":
                self._run_vendor(work)
            else:
                model, passed = self._model(work), dict[str, dict[Key, Passed]]()
                with self._writer(work, model) as writer:
                    with Disk(self.checkpoint, model, work, self.ranks, writer) as disk:
                        for tower in self.family.towers if not work.state.outside else ():
                            passed[tower.name] = self._pass_tower(tower, passed, model, disk)
                        disk.finish()
            self.blocks, self.seconds = work.state.blocks, work.state.seconds
            if self.ranks.rank == 0:
                write_records(self, work.export, work.state.identity)
        except BaseException:
            self._discard()
            raise
        finally:
            self._own = None
        return self

    def _pass_tower(self, tower: Tower, passed: dict, model: StreamedModel, disk: Disk) -> dict[Key, Passed]:
        """Quantize a tower's blocks. Returns what this rank's samples leave behind it; passed: the same of the towers
        before.
        """
        config, work = self.checkpoint.config, disk.work
        used, done = tower.used(config), work.state.done.get(tower.name, 0)
        samples = self.own_samples()
        keys = [(number, turn) for number, inputs in samples.items() for turn in range(tower.passes(inputs))]
        kept = work.kept(tower.name, keys, tower.taps(config)) if done else None
        if kept:
            for place in kept.values():
                place.hidden = place.hidden.to(model.device)
                place.taps = {tap: value.to(model.device) for tap, value in place.taps.items()}
        if done == used:
            return {key: Passed(place.hidden, place.taps) for key, place in (kept or {}).items()}
        rows, doubt = rows_and_doubt(self.samples, tower, self.family, config, self.config)
        quantizer = BlockQuantizer(model, self.plan, self.config, self.export_dtype, rows, doubt, self.ranks)
        walk = Walk(model, tower, samples, passed, done, kept)
        with walk, self.reporter.progress(f"{tower.name} tower", used) as advance:
            for index in range(done, used):
                start, name = time.perf_counter(), tower.block(index)[:-1]
                tensors = disk.read(tower, index)
                if index == done:
                    with out_of_memory_named(f"the {tower.name} tower's entrance"):
                        model.set_all(tensors)
                        walk.enter()
                with out_of_memory_named(name):
                    try:
                        with self.ranks.together():
                            model.set_all(tensors)
                            result = quantizer.quantize(tower, index, walk.calls)
                    except NoMemory as err:
                        self.reporter.line(f"{name}: out of memory on {self._card(err)}, done on the CPU")
                        result = on_cpu(model, (tower, index), tensors, walk.calls, quantizer)
                    model.clear(tensors)
                    disk.wait()  # until it is kept what this block got, which the walk lets go
                    walk.advance(result.outputs)
                if index == done:  # a rank without a sample here has not seen how the blocks answer
                    for seen in self.ranks.gather(model.answers_tuple):
                        model.answers_tuple.update(seen)
                result.outputs = {}
                entry = block_entry(name, result, time.perf_counter() - start)
                disk.commit((tower, index), result, tensors, walk.state(), entry)
                self.reporter.line(block_line(entry, self.config.anti_method))
                advance()
                if any(self.ranks.gather(work.stop or stop_asked())):
                    disk.wait()
                    self.ranks.barrier()
                    raise KeyboardInterrupt
            disk.wait()
        return walk.passed

    def _model(self, work: Work) -> StreamedModel:
        """The model to walk through, with what a resumed job knows of it. Raises UsageError when a tower is to be
        quantized that no sample enters, or when ranks were given different things.
        """
        refuse_unseen(self.samples, self.plan)
        self.ranks.check_same(work.state.identity)
        if work.committed:
            blocks = {tower.name: tower.used(self.checkpoint.config) for tower in self.family.towers}
            self.reporter.line(f"resumed  {work.progress(blocks)} blocks are done")
        trusted, dtype = self.config.trust_remote_code, self.compute_dtype
        model = StreamedModel(self.checkpoint, self.family, dtype, self.device, trusted)
        model.answers_tuple.update(work.state.answers_tuple)
        return model

    def own_samples(self) -> dict[int, dict[str, Tensor]]:
        """Sample number -> the model's inputs, batch [1, ...], of this rank's samples, pixels included; behind the last
        of them those that are held out, on the first rank.
        """
        if self._own is None:
            config, towers = self.checkpoint.config, self.family.towers
            costs = [sum(tower.tokens(config, inputs) for tower in towers) for inputs in self.samples.inputs]
            self._own = {number: self.samples.whole(number) for number in self.ranks.share(costs)}
            if self.ranks.rank == 0:
                self._own |= dict(enumerate(self.samples.held_out, len(costs)))
        return self._own

    def _card(self, err: NoMemory) -> str:
        return f"{self.device} of rank {err.rank}" if self.ranks.size > 1 else self.device

    @contextmanager
    def _writer(self, work: Work, model: StreamedModel) -> Iterator[ExportWriter | None]:
        """The export's writer, on the first rank; what stands beside the weights is written at the end."""
        if self.ranks.rank > 0:
            yield None
            return
        writer = self._open_writer(work, self._done(work, model))
        try:
            yield writer
            writer.finish()
        finally:
            writer.abandon()

    def _open_writer(self, work: Work, done: list[str], copies: int = 1) -> ExportWriter:
        part_bytes = self.config.part_file_size * 2**30
        writer = ExportWriter(work.export, self.checkpoint, self.plan, self.export_dtype, part_bytes, done)
        try:
            check_space(work.export, writer.nbytes * copies)
        except BaseException:
            writer.abandon()
            raise
        return writer

    def _done(self, work: Work, model: StreamedModel) -> list[str]:
        """The hub tensors that an earlier run of this job has written."""
        if work.state.outside:
            return list(self.checkpoint.tensors)
        blocks = [(tower, index) for tower in self.family.towers for index in range(work.state.done.get(tower.name, 0))]
        return [name for tower, index in blocks for name in model.block_tensors(tower, index)]

    def _run_vendor(self, work: Work) -> None:
        """The vendor's numbers in our layout, in which scales are float32. Nothing is committed: the library does all
        blocks at once.
        """
        start = time.perf_counter()
        writer = self._open_writer(work, [], copies=2)  # the library writes an export of its own
        try:
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
            writer.finish()
        finally:
            writer.abandon()
        work.state = replace(work.state, seconds=time.perf_counter() - start)

    def save(
        self, directory: str | Path, save_type: list[str] | tuple[str, ...] = ("ascendV1",), act: str | None = None
    ) -> None:
        """Put the result into `directory`, which must be absent or empty. save_type: one of formats.SAVE_TYPES, by
        default the directory for MindIE and vLLM-Ascend; act: how activations are rounded, by default as is usual for
        that format. Can be called again for another place or format. Raises UsageError before run(), and for a place or
        choice that cannot be used.
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
