"""One job on many cards: what its processes (ranks, one per card; launch.py starts them) tell one another.

Every rank streams the blocks and runs its own samples through them. Of a block the ranks join
    lo, hi [C]       all-reduced by minimum and maximum, which do not depend on an order
    rows             gathered, by sample number, and put into the samples' canonical order
so that each then holds what one process would hold, bit for bit; no float is summed over ranks. Groups that share no
weight are smoothed by different ranks, linears are rounded by different ranks, and rank 0 has them all, measures,
writes and commits. So the export does not depend on the number of ranks; where a card's own arithmetic depends on what
runs on it at the same time, that is the card's doing.

A rank whose card has no memory for its part of a block says so in the place of the next exchange: in front of every
exchange the ranks agree that none has said it. If one has, all of them leave the block at that exchange (NoMemory), and
none waits for what does not come.

Left out: splitting a block over cards. A block of the largest model that is supported, with what is computed from it,
fits one.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..arithmetic.stats import Observer
from ..base.errors import QuantError, UsageError
from ..model.device import is_out_of_memory


class NoMemory(Exception):
    """A device has no memory for a block: raised on all ranks. rank: whose device it is, the highest if there are
    several.
    """

    def __init__(self, rank: int):
        super().__init__(f"out of memory on the device of rank {rank}")
        self.rank = rank


@dataclass
class Ranks:
    """This process among those of the job. objects, commits: gloo groups, one for each thread that communicates, until
    the job ends.
    """

    rank: int = 0
    size: int = 1
    objects: Any = None
    commits: Any = None

    def share(self, costs: list[int]) -> list[int]:
        """The numbers of this rank's samples, ascending: the dearest sample goes to the rank with least to do, sample 0
        to rank 0.
        """
        loads, shares = [0] * self.size, [list[int]() for _ in range(self.size)]
        for number in [0, *sorted(range(1, len(costs)), key=lambda number: (-costs[number], number))]:
            rank = 0 if number == 0 else loads.index(min(loads))
            loads[rank] += costs[number]
            shares[rank].append(number)
        return sorted(shares[self.rank])

    def owns(self, number: int) -> bool:
        """Whether piece `number` of some work is this rank's."""
        return number % self.size == self.rank

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around what all ranks do with a block. Raises NoMemory on all of them when the device of one has no memory
        for it.
        """
        try:
            yield
        except RuntimeError as err:
            if not is_out_of_memory(err):
                raise
            self._agree(out_of_memory=True)
        self._agree()  # one may have run out of memory behind the last exchange

    def _agree(self, out_of_memory: bool = False) -> None:
        """In front of every exchange, on the host: raises NoMemory if any rank is out of memory."""
        flag = torch.tensor(self.rank + 1 if out_of_memory else 0)
        if self.size > 1:
            from torch import distributed

            with connected():
                distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self.objects)
        if flag > 0:
            raise NoMemory(int(flag) - 1) from None

    def join(self, observers: list[Observer]) -> None:
        """Every rank's observations into every rank's observers."""
        if self.size == 1:
            return
        from torch import distributed

        mine = [
            (observer.count, {number: rows.cpu() for number, rows in observer.rows.items()}) for observer in observers
        ]
        self._agree()
        with connected():
            for observer in observers:
                tensors = {distributed.ReduceOp.MIN: observer.lo, distributed.ReduceOp.MAX: observer.hi}
                if observer.moments is not None:
                    tensors[distributed.ReduceOp.SUM] = observer.moments  # whole numbers: the order does not matter
                for operation, tensor in tensors.items():
                    # A block may be on the CPU in a job on cards.
                    group = self.objects if tensor.device.type == "cpu" else None
                    distributed.all_reduce(tensor, operation, group=group)
        everyones = self.gather(mine)
        for position, observer in enumerate(observers):
            parts = [part[position] for part in everyones]
            observer.count = sum(count for count, _ in parts)
            observer.rows = {
                number: value.to(observer.lo.device) for _, rows in parts for number, value in rows.items()
            }

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank. Tensors must be on the CPU."""
        if self.size == 1:
            return [value]
        from torch import distributed

        self._agree()
        values = [None] * self.size
        with connected():
            distributed.all_gather_object(values, value, group=self.objects)
        return values

    def gather_at_first(self, value: Any) -> list[Any]:
        """As gather, on rank 0; nothing on the others."""
        if self.size == 1:
            return [value]
        from torch import distributed

        self._agree()
        values = [None] * self.size if self.rank == 0 else None
        with connected():
            distributed.gather_object(value, values, group=self.objects)
        return values or []

    def check_same(self, values: dict[str, str]) -> None:
        """Raises UsageError, on every rank, when one has other values: hosts may differ, and so may the commands given
        there.
        """
        first, *others = self.gather(values)
        for rank, theirs in enumerate(others, 1):
            for name in sorted({*first, *theirs}):
                ours, other = first.get(name, "not there"), theirs.get(name, "not there")
                if ours != other:
                    raise UsageError(
                        f"{name} is {ours} on rank 0 and {other} on rank {rank}; it must be the same on all hosts"
                    )

    def barrier(self) -> None:
        """Wait for the others. Raises QuantError when one has died."""
        self.gather(None)

    def commit_barrier(self) -> None:
        """Wait for the others in the thread that commits, which has a connection of its own: two threads must not share
        one. Raises QuantError when another rank has died.
        """
        if self.size > 1:
            from torch import distributed

            with connected():
                distributed.barrier(group=self.commits)


@contextmanager
def connected() -> Iterator[None]:
    """Around an exchange, which fails when another rank has died: that one has said why, and the launcher is about to
    end this one. Raises QuantError then, and for a device that ran out of memory in the midst of it.
    """
    try:
        yield
    except RuntimeError as err:
        if is_out_of_memory(err):  # not NoMemory: the others are in the midst of it and do not learn of it
            raise QuantError(
                f"out of memory while the ranks exchange results: {str(err).splitlines()[0]}; take a smaller"
                " --max_pixels"
            ) from None
        time.sleep(10)
        reason = re.sub(
            r"^\[[^ ]+\] |\. This is typically.*", "", str(err).splitlines()[0]
        )  # gloo adds a place in its source, and advice
        raise QuantError(f"another rank ended, or cannot be reached: {reason}") from None
