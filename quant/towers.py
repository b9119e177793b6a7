"""The loop over towers and blocks: the data's way through the model, once.

    for each tower, for each block:   read it                    (while the one before computes)
                                      observe, smooth, round, measure        (block.py)
                                      write and commit it        (while the next one computes; resume.py)
    then carry over what stands outside the blocks.

A job that is resumed enters the tower as ever, puts the committed hidden states in the place of the entrance's, and goes on.
"""
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict

from torch import Tensor

from . import source
from .ascend import ExportWriter
from .block import BlockQuantizer, BlockResult
from .checkpoint import Checkpoint
from .config import QuantConfig
from .console import Reporter
from .family import Family, Tower
from .plan import Plan
from .resume import Work
from .samples import CalibrationSet
from .skeleton import Feed, Skeleton


class TowerRun:
    """Everything that the loop needs, and the thread pools that read ahead and write behind. run() is called once."""

    def __init__(self, checkpoint: Checkpoint, family: Family, plan: Plan, config: QuantConfig, samples: CalibrationSet, skeleton: Skeleton,
                 writer: ExportWriter, work: Work, reporter: Reporter):  # fmt: skip
        self.checkpoint, self.family, self.plan, self.config, self.samples = checkpoint, family, plan, config, samples
        self.skeleton, self.writer, self.work, self.reporter = skeleton, writer, work, reporter
        self.source = source.describe_all(checkpoint.files)
        self.start = time.perf_counter() - work.state.seconds

    def run(self) -> None:
        """Raises QuantError; KeyboardInterrupt, after a commit, when the work is asked to stop."""
        if self.work.committed:
            counts = [f"{self.work.state.done.get(tower.name, 0)} of {tower.used(self.checkpoint.config)} {tower.name}" for tower in self.family.towers]
            self.reporter.line(f"resumed  {' and '.join(counts)} blocks are done")
        if self.work.state.outside:
            return
        outputs: dict[str, list[Tensor]] = {}
        with ThreadPoolExecutor(1, "reader") as self.reader, ThreadPoolExecutor(1, "writer") as self.committer:
            for tower in self.family.towers:
                outputs[tower.name] = self._run_tower(tower, outputs)
        self.writer.copy_pending()
        self.writer.sync()
        source.check_unchanged(self.checkpoint.files, self.source, whole=True)
        self.work.commit_outside(time.perf_counter() - self.start)

    def _run_tower(self, tower: Tower, outputs: dict[str, list[Tensor]]) -> list[Tensor]:
        """The samples' hidden states behind the tower's last used block. outputs: those of earlier towers."""
        used, done = tower.used(self.checkpoint.config), self.work.state.done.get(tower.name, 0)
        feeds: list[Feed] = []
        if done:
            feeds = self._enter_again(tower, outputs)
        if done == used:
            return [feed.hidden for feed in feeds]
        quantizer = BlockQuantizer(self.skeleton, tower, self.plan, self.config, self.writer.dtype, self.samples.keys)
        coming = self.reader.submit(self._load, tower, done)
        written: Future | None = None
        with self.reporter.progress(f"{tower.name} tower", used) as advance:
            for index in range(done, used):
                start = time.perf_counter()
                tensors = coming.result()
                if index + 1 < used:
                    coming = self.reader.submit(self._load, tower, index + 1)
                self._set(tensors)
                if index == 0:
                    feeds = self.skeleton.enter(tower, self.samples.inputs, outputs)
                result = quantizer(index, feeds)
                self.skeleton.clear(tensors)
                if written:
                    written.result()
                entry = block_entry(tower.block(index)[:-1], result, time.perf_counter() - start)
                hidden = {number: feed.hidden for number, feed in enumerate(feeds)}
                written = self.committer.submit(self._commit, tower, index, tensors, result, hidden, entry)
                self.reporter.line(block_line(entry, self.config.anti_method))
                advance()
                if self.work.stop:
                    written.result()
                    raise KeyboardInterrupt
            written.result()
        return [feed.hidden for feed in feeds]

    def _load(self, tower: Tower, index: int) -> dict[str, Tensor]:
        return {name: self.checkpoint.load(name) for name in self.skeleton.block_tensors(tower, index)}

    def _set(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.skeleton.set(name, tensor)

    def _enter_again(self, tower: Tower, outputs: dict[str, list[Tensor]]) -> list[Feed]:
        """The feeds of a tower, standing behind its last committed block."""
        tensors = self._load(tower, 0)
        self._set(tensors)
        feeds = self.skeleton.enter(tower, self.samples.inputs, outputs)
        self.skeleton.clear(tensors)
        committed = self.work.hidden(tower.name)
        for number, feed in enumerate(feeds):
            feed.hidden = committed[number].to(self.skeleton.device)
        return feeds

    def _commit(self, tower: Tower, index: int, tensors: dict[str, Tensor], result: BlockResult, hidden: dict[int, Tensor], entry: dict) -> None:
        """Write one block: its int8 linears, what folding changed, and the rest as it was. Then all that is needed to go on behind it."""
        done = set()
        for linear in result.linears:
            self.writer.put_linear(linear)
            done |= {f"{linear.name}.weight", f"{linear.name}.bias"}
        for name, tensor in tensors.items():
            if name not in done:
                self.writer.put_float(name, result.floats.get(name, tensor))
        if self.work.keeps:
            self.writer.sync()
        source.check_unchanged(self.checkpoint.files, self.source)
        self.work.commit_block(tower.name, index, hidden, entry, time.perf_counter() - self.start)


def block_entry(name: str, result: BlockResult, seconds: float) -> dict:
    """A block's part of quant_run.json."""
    return {
        "block": name,
        "int8": [linear.name for linear in result.linears],
        "snr_plain_db": result.snr_plain,
        "snr_db": result.snr,
        "ranges": [asdict(entry) for entry in result.ranges],
        "seconds": round(seconds, 3),
    }


def block_line(entry: dict, anti_method: str) -> str:
    """The same as a line for the terminal."""
    change = f"{entry['snr_plain_db']:5.1f} -> {entry['snr_db']:5.1f} dB"
    if anti_method == "none":
        change = f"{entry['snr_db']:5.1f} dB"
    if not entry["int8"]:
        change = "float"
    return f"{entry['block']:<43} {len(entry['int8']):>2} int8  {change:<17} {entry['seconds']:7.2f} s"
