"""The product of two int8 matrices in int32, exact on every device.

torch offers one, `torch._int_mm`, which cannot be taken on trust. On x86 without VNNI instructions (or with oneDNN kept
from them by ONEDNN_MAX_CPU_ISA) pairs of products are added in 16 bits, which saturate: 2 * 127 * 255 is above 32767.
Other CPUs get a plain loop, exact and 30 times slower than a product of floats; others again, and NPUs, get nothing.
So every process tries it once per kind of device, at its first product, and takes products of float32 instead where
`_int_mm` is wrong, missing or slower. All that is exact gives the same bytes: which one ran matters for the time alone.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base.errors import QuantError

EXACT = 1024  # 1024 products of at most 128 * 128 sum to at most 2^24: exact in float32, in whatever order
TILE = 1024  # rows of the second matrix that are turned into floats at a time, so that they stay in the cache
FAST = "torch._int_mm"
SHAPES = ((1, 64, 16), (17, 1025, 33), (16, 1032, 24), (40, 2081, 64), (70, 2560, 40))  # (T, I, O) that are tried
TIMED = (64, 1024, 256)  # (T, I, O) of the product that is timed: a millisecond in float32


@dataclass(frozen=True)
class Product:
    """One way to multiply. why: what spoke against FAST, where it is another; otherwise empty."""

    name: str
    multiply: Callable[[Tensor, Tensor], Tensor]
    why: str = ""


_chosen: dict[str, Product] = {}
_choosing = threading.Lock()  # samples run in several threads, all of which may come to their first product at once


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """int8 [T, I], int8 [O, I] -> a b^T, int32 [T, O], exact on every device. Raises QuantError as product_on."""
    return product_on(a.device.type).multiply(a, b)


def row_sums(codes: Tensor) -> Tensor:
    """int8 [O, I] -> int32 [O]. By a product with ones: torch's own sum of int8 takes 25 times as long on a CPU."""
    return int8_matmul(codes, codes.new_ones(16, codes.shape[1]))[:, 0]


def product_on(device: str) -> Product:
    """The product that this process computes with on "cpu", "cuda" or "npu"; tried out at the first call.

    Raises QuantError when none is exact.
    """
    if device not in _chosen:
        with _choosing:
            if device not in _chosen:
                _chosen[device] = _choose(device)
    return _chosen[device]


def _choose(device: str) -> Product:
    """The fastest that is exact."""
    plain = Product("float32", float_matmul, f"{FAST} has no kernel there")
    if device in ("cpu", "cuda"):
        try:
            if device == "cpu" and (slower := _seconds(int_matmul) / _seconds(float_matmul)) > 1:
                plain = Product("float32", float_matmul, f"{FAST} takes {slower:.2g} times as long there")
            elif exact(int_matmul, device):
                return Product(FAST, int_matmul)
            else:
                plain = Product("float32", float_matmul, f"{FAST} is not exact there")
        except torch.OutOfMemoryError:  # no judgement on the kernel
            raise
        except RuntimeError:  # an old GPU, or a build of torch, without such a kernel
            pass
    if not exact(float_matmul, device):
        raise QuantError(f"{device}: float32 products of whole numbers below 2^24 are not exact; use --device_type cpu")
    return plain


def exact(multiply: Callable[[Tensor, Tensor], Tensor], device: str) -> bool:
    """Whether multiply(int8 [T, I], int8 [O, I]) gives the right whole numbers for the largest codes and for random
    ones. The right ones are taken from float64, which holds them all (below 2^53) and is ten times as fast as int64.
    """
    return all(
        torch.equal(multiply(a.to(device), b.to(device)).cpu().double(), a.double() @ b.double().T)
        for a, b in _trials()
    )


def _trials() -> Iterator[tuple[Tensor, Tensor]]:
    """All four pairs of the largest codes, those mixed, and codes of every size, in each of SHAPES."""
    generator = torch.Generator().manual_seed(0)
    for rows, columns, outputs in SHAPES:
        for left in (-128, 127):
            for right in (-127, 127):
                yield (
                    torch.full((rows, columns), left, dtype=torch.int8),
                    torch.full((outputs, columns), right, dtype=torch.int8),
                )
        high = torch.rand(rows + outputs, columns, generator=generator) < 0.5
        yield (
            torch.where(high[:rows], 127, -128).to(torch.int8),
            torch.where(high[rows:], 127, -127).to(torch.int8),
        )
        codes = torch.randint(-127, 128, (rows + outputs, columns), generator=generator, dtype=torch.int8)
        yield codes[:rows], codes[rows:]


def _seconds(multiply: Callable[[Tensor, Tensor], Tensor]) -> float:
    """What one product of TIMED takes on one core of the CPU, the best of five. On all cores a busy machine would let
    the many operations of float_matmul wait for each other, and time that.
    """
    rows, columns, outputs = TIMED
    a, b = torch.ones(rows, columns, dtype=torch.int8), torch.ones(outputs, columns, dtype=torch.int8)
    times, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(5):
            start = time.perf_counter()
            multiply(a, b)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times)


def int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a int8 [T, I], b int8 [O, I] -> a b^T int32 [T, O] by torch's own int8 product, where it takes the shape;
    elsewhere by float_matmul.
    """
    if a.device.type == "cuda":
        if b.shape[0] % 8 or b.shape[1] % 8:  # cuBLAS takes none of them
            return float_matmul(a, b)
        if a.shape[0] <= 16:  # nor fewer than 17 rows
            return torch._int_mm(torch.cat([a, a.new_zeros(17 - a.shape[0], a.shape[1])]), b.t())[: a.shape[0]]
    return torch._int_mm(a, b.t())


def float_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a int8 [T, I], b int8 [O, I] -> a b^T int32 [T, O], the same integers, from float32 products of EXACT columns at
    a time: what a product of floats takes, and 2 to 20 % more.
    """
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int32, device=a.device)
    for start in range(0, a.shape[1], EXACT):
        columns = slice(start, start + EXACT)
        part = a[:, columns].float()
        for first in range(0, b.shape[0], TILE):
            rows = slice(first, first + TILE)
            total[:, rows] += (part @ b[rows, columns].float().T).to(torch.int32)
    return total
