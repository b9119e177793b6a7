"""The loop over towers and blocks: the data's way through the model, once.

    for each tower, for each block:   read it                    (while the one before computes)
                                      observe, smooth, round, measure        (block.py)
                                      write and commit it        (while the next one computes; resume.py)
    and meanwhile carry over what no block holds.

A job that is resumed enters the tower as ever, puts the committed hidden states in the place of the entrance's, and
goes on.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import asdict

import torch
from torch import Tensor

from ..base.config import QuantConfig
from ..base.console import Reporter
from ..export.plan import Plan
from ..export.writer import ExportWriter
from ..families.family import Family, Tower
from ..files import fingerprints
from ..files.checkpoint import Checkpoint
from ..inputs.samples import CalibrationSet
from ..model.streamed import Feed, Skeleton
from ..model.threads import beside
from .block import BlockQuantizer, BlockResult
from .memory import on_cpu, told
from .ranks import NoMemory, Ranks, stop_asked
from .resume import Work


class TowerRun:
    """Everything that the loop needs, and the thread pools that read ahead and write behind. run() is called once.

    dtype: of what is exported. writer: None on every rank but the first.
    """

    def __init__(self, checkpoint: Checkpoint, family: Family, plan: Plan, config: QuantConfig, samples: CalibrationSet, skeleton: Skeleton,
                 dtype: torch.dtype, writer: ExportWriter | None, work: Work, reporter: Reporter, ranks: Ranks):  # fmt: skip
        self.checkpoint, self.family, self.plan, self.config, self.dtype = checkpoint, family, plan, config, dtype
        self.skeleton, self.writer, self.work, self.reporter, self.ranks = skeleton, writer, work, reporter, ranks
        self.keys = samples.keys
        costs = [sum(tower.tokens(checkpoint.config, inputs) for tower in family.towers) for inputs in samples.inputs]
        self.inputs = {number: samples.whole(number) for number in ranks.share(costs)}
        self.source = fingerprints.describe_all(checkpoint.files)
        self.start = time.perf_counter() - work.state.seconds
        self.ended = threading.Event()

    def run(self) -> None:
        """Raises QuantError; KeyboardInterrupt, after a commit, when the work is asked to stop."""
        self.ranks.check_same(self.work.state.identity)
        if self.work.committed:
            counts = [
                f"{self.work.state.done.get(tower.name, 0)} of {tower.used(self.checkpoint.config)} {tower.name}"
                for tower in self.family.towers
            ]
            self.reporter.line(f"resumed  {' and '.join(counts)} blocks are done")
        if self.work.state.outside:
            return
        outputs: dict[str, dict[int, Tensor]] = {}
        with (
            beside("reader") as self.reader,
            beside("writer") as self.committer,
            beside("carrier") as carrier,
        ):
            self.carried = carrier.submit(self._carry)
            try:
                for tower in self.family.towers:
                    outputs[tower.name] = self._run_tower(tower, outputs)
                self.carried.result()
            finally:
                self.ended.set()
        if self.writer:
            self.writer.sync()
        fingerprints.check_unchanged(self.checkpoint.files, self.source, whole=True)
        if self.writer:
            self.work.commit_outside(time.perf_counter() - self.start)

    def _run_tower(self, tower: Tower, outputs: dict[str, dict[int, Tensor]]) -> dict[int, Tensor]:
        """The samples' hidden states behind the tower's last used block. outputs: those of earlier towers."""
        used, done = tower.used(self.checkpoint.config), self.work.state.done.get(tower.name, 0)
        feeds: dict[int, Feed] = {}
        if done:
            feeds = self._enter_again(tower, outputs)
        if done == used:
            return {number: feed.hidden for number, feed in feeds.items()}
        quantizer = BlockQuantizer(self.skeleton, tower, self.plan, self.config, self.dtype, self.keys, self.ranks)
        coming = self.reader.submit(self._load, tower, done)
        written: Future | None = None
        with self.reporter.progress(f"{tower.name} tower", used) as advance:
            for index in range(done, used):
                start = time.perf_counter()
                tensors = coming.result()
                if index + 1 < used:
                    coming = self.reader.submit(self._load, tower, index + 1)
                if index == 0:
                    self._set(tensors)
                    feeds = self._enter(tower, outputs)
                result = self._quantize(quantizer, index, feeds, tensors)
                self.skeleton.clear(tensors)
                if written:
                    written.result()
                if self.carried.done():
                    self.carried.result()  # raises what stopped it
                entry = block_entry(tower.block(index)[:-1], result, time.perf_counter() - start)
                hidden = {number: feed.hidden for number, feed in feeds.items()}
                written = self.committer.submit(self._commit, tower, index, tensors, result, hidden, entry)
                self.reporter.line(block_line(entry, self.config.anti_method))
                advance()
                if any(self.ranks.gather(self.work.stop or stop_asked())):
                    written.result()
                    self.ranks.barrier()
                    raise KeyboardInterrupt
            written.result()
        return {number: feed.hidden for number, feed in feeds.items()}

    def _quantize(
        self, quantizer: BlockQuantizer, index: int, feeds: dict[int, Feed], tensors: dict[str, Tensor]
    ) -> BlockResult:
        """On the CPU of every rank, if the device of one has no memory for it. Raises QuantError when there is no
        memory for it anywhere.
        """
        before, name = {number: feed.hidden for number, feed in feeds.items()}, quantizer.tower.block(index)[:-1]
        with told(name):
            try:
                with self.ranks.together():
                    self._set(tensors)
                    return quantizer(index, feeds)
            except NoMemory as err:
                where = f"{self.skeleton.device} of rank {err.rank}" if self.ranks.size > 1 else self.skeleton.device
            self.reporter.line(f"{name}: out of memory on {where}, done on the CPU")
            for number, feed in feeds.items():
                feed.hidden = before[number]
            return on_cpu(self.skeleton, quantizer.tower, index, tensors, feeds, lambda here: quantizer(index, here))

    def _load(self, tower: Tower, index: int) -> dict[str, Tensor]:
        return {name: self.checkpoint.load(name) for name in self.skeleton.block_tensors(tower, index)}

    def _set(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.skeleton.set(name, tensor)

    def _enter(self, tower: Tower, outputs: dict[str, dict[int, Tensor]]) -> dict[int, Feed]:
        """This rank's samples at the tower's entrance. Block 0 must be set."""
        earlier = {name: list(hidden.values()) for name, hidden in outputs.items()}
        with told(f"the {tower.name} tower's entrance"):
            return dict(zip(self.inputs, self.skeleton.enter(tower, list(self.inputs.values()), earlier)))

    def _enter_again(self, tower: Tower, outputs: dict[str, dict[int, Tensor]]) -> dict[int, Feed]:
        """The feeds of a tower, standing behind its last committed block."""
        tensors = self._load(tower, 0)
        self._set(tensors)
        feeds = self._enter(tower, outputs)
        self.skeleton.clear(tensors)
        for number, hidden in self.work.hidden(tower.name, feeds).items():
            feeds[number].hidden = hidden.to(self.skeleton.device)
        return feeds

    def _carry(self) -> None:
        """Copy what no block writes: all that stands outside them, blocks without effect, tensors of older revisions."""
        if not self.writer:
            return
        used = {tower: tower.used(self.checkpoint.config) for tower in self.family.towers}
        for name in self.checkpoint.tensors:
            tower, index = self.family.block_of(name) or (None, 0)
            if tower is None or index >= used[tower] or name not in self.skeleton.names:
                self.writer.carry(name, self._pieces(name))

    def _pieces(self, name: str) -> Iterator[Tensor]:
        for piece in self.checkpoint.pieces(name):
            if self.ended.is_set():
                raise CancelledError
            yield piece

    def _commit(
        self,
        tower: Tower,
        index: int,
        tensors: dict[str, Tensor],
        result: BlockResult,
        hidden: dict[int, Tensor],
        entry: dict,
    ) -> None:
        """Bring one block to the disk, and all that is needed to go on behind it."""
        if self.writer:
            self._write(tensors, result)
        fingerprints.check_unchanged(self.checkpoint.files, self.source)
        self.work.keep_hidden(tower.name, index, self.ranks.rank, hidden)
        self.ranks.commit_barrier()
        self.work.commit_block(tower.name, index, entry, time.perf_counter() - self.start, self.ranks.rank == 0)

    def _write(self, tensors: dict[str, Tensor], result: BlockResult) -> None:
        """One block: its int8 linears, what folding changed, and the rest as it was."""
        done = set()
        for linear in result.linears:
            self.writer.put_linear(linear)
            done |= {f"{linear.name}.weight", f"{linear.name}.bias"}
        for name, tensor in tensors.items():
            if name not in done:
                self.writer.put_float(name, result.floats.get(name, tensor))
        if self.work.keeps:
            self.writer.sync()


def block_entry(name: str, result: BlockResult, seconds: float) -> dict:
    """A block's part of quant_run.json."""
    return {
        "block": name,
        "int8": [linear.name for linear in result.linears],
        "snr_plain_db": result.snr_plain,
        "snr_db": result.snr,
        "ranges": [asdict(entry) for entry in result.ranges],
        "seconds": round(seconds, 3),
        "steps": {step: round(took, 3) for step, took in result.seconds.items()},
    }


def block_line(entry: dict, anti_method: str) -> str:
    """The same as a line for the terminal."""
    change = f"{entry['snr_plain_db']:5.1f} -> {entry['snr_db']:5.1f} dB"
    if anti_method == "none":
        change = f"{entry['snr_db']:5.1f} dB"
    if not entry["int8"]:
        change = "float"
    return f"{entry['block']:<43} {len(entry['int8']):>2} int8  {change:<17} {entry['seconds']:7.2f} s"
