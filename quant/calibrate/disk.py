"""A job's disk, used while blocks are computed: the next block is read ahead, the one before is written and committed
behind, and meanwhile all that no block holds is copied.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future

from torch import Tensor

from ..base.errors import QuantError
from ..export.writer import ExportWriter
from ..families.family import Tower
from ..files import fingerprints
from ..files.checkpoint import Checkpoint
from ..model.parallel import background_thread
from ..model.paused import Key
from ..model.streamed import StreamedModel
from .block import BlockResult
from .ranks import Ranks
from .work import Work


class Disk:
    """Use as a context manager. checkpoint: what `model` is made of; writer: None on every rank but the first.

    Tensors are those of the checkpoint, of any shape, under their hub names.
    """

    def __init__(
        self, checkpoint: Checkpoint, model: StreamedModel, work: Work, ranks: Ranks, writer: ExportWriter | None
    ):
        self.model, self.work, self.ranks, self.writer = model, work, ranks, writer
        self.checkpoint, self.family = checkpoint, model.family
        self.source = fingerprints.describe_all(self.checkpoint.files)
        self.start = time.perf_counter() - work.state.seconds
        self.ended = threading.Event()
        self._coming: dict[tuple[str, int], Future] = {}
        self._written: Future | None = None

    def __enter__(self) -> "Disk":
        self._threads = [background_thread(name) for name in ("reader", "writer", "copier")]
        self._reader, self._committer, copier = self._threads
        self._copied = copier.submit(self._copy_outside)
        return self

    def __exit__(self, *_) -> None:
        self.ended.set()
        for thread in self._threads:
            thread.shutdown()

    def read(self, tower: Tower, index: int) -> dict[str, Tensor]:
        """Hub tensor name -> tensor, of a block. The one after it is read meanwhile."""
        coming = self._coming.pop((tower.name, index), None) or self._reader.submit(self._read, tower, index)
        if index + 1 < tower.used(self.checkpoint.config):
            self._coming[tower.name, index + 1] = self._reader.submit(self._read, tower, index + 1)
        return coming.result()

    def _read(self, tower: Tower, index: int) -> dict[str, Tensor]:
        return {name: self.checkpoint.load(name) for name in self.model.block_tensors(tower, index)}

    def commit(
        self,
        place: tuple[Tower, int],
        result: BlockResult,
        tensors: dict[str, Tensor],
        kept: tuple[dict[Key, Tensor], dict[Key, Tensor]],
        entry: dict,
    ) -> None:
        """Begin to bring a block to the disk, and all that is needed to go on behind it. place: its tower and index;
        tensors: as it was read; kept: Work.keep_hidden's hidden states and taps; entry: for quant_run.json.
        """
        self._written = self._committer.submit(self._commit, place, result, tensors, kept, entry)

    def wait(self) -> None:
        """Until the last commit is on the disk. Raises what stopped it, or the copying beside it."""
        if self._written:
            self._written.result()
        if self._copied.done():
            self._copied.result()

    def finish(self) -> None:
        """Until everything is on the disk, and committed. Raises QuantError when the source has changed meanwhile."""
        if self.work.state.outside:
            return  # an earlier run of this job came to here
        self.wait()
        self._copied.result()
        if self.writer:
            self.writer.sync()
        fingerprints.check_unchanged(self.checkpoint.files, self.source, whole=True)
        if self.writer:
            self.work.commit_outside(time.perf_counter() - self.start)

    def _commit(self, place, result: BlockResult, tensors: dict[str, Tensor], kept: tuple, entry: dict) -> None:
        tower, index = place
        if self.writer:
            self._write(self.writer, result, tensors)
        fingerprints.check_unchanged(self.checkpoint.files, self.source)
        self.work.keep_hidden(tower.name, index, self.ranks.rank, *kept)
        self.ranks.commit_barrier()
        seconds = time.perf_counter() - self.start
        self.work.commit_block(tower.name, index, entry, seconds, self.model.answers_tuple, self.ranks.rank == 0)

    def _write(self, writer: ExportWriter, result: BlockResult, tensors: dict[str, Tensor]) -> None:
        """One block: its int8 linears, what folding changed, and the rest as it was."""
        done = set()
        for linear in result.linears:
            writer.put_linear(linear)
            done |= {f"{linear.name}.weight", f"{linear.name}.bias"}
        for name, tensor in tensors.items():
            if name not in done:
                writer.put_float(name, result.floats.get(name, tensor))
        if extra := sorted(set(result.floats) - set(tensors)):
            raise QuantError(f"{extra[0]}: folding made a tensor that the checkpoint does not have; this is a bug")
        if self.work.keeps:
            writer.sync()

    def _copy_outside(self) -> None:
        """What no block writes: all that stands outside them, blocks without effect, tensors of older revisions."""
        if not self.writer or self.work.state.outside:
            return
        used = {tower: tower.used(self.checkpoint.config) for tower in self.family.towers}
        for name in self.checkpoint.tensors:
            tower, index = self.family.block_of(name) or (None, 0)
            if tower is None or index >= used[tower] or name not in self.model.names:
                self.writer.copy(name, self._pieces(name))

    def _pieces(self, name: str) -> Iterator[Tensor]:
        for piece in self.checkpoint.pieces(name):
            if self.ended.is_set():
                raise CancelledError
            yield piece
