"""Writes random tensors as safetensors files at the disk's speed, in the memory of one block of noise.

Drawing 8e9 normal numbers takes minutes, so one block of P = 2^20 - 3 of them is drawn, rounded once for each standard
deviation in use, and every tensor is a run through that block from a start of its own:

    W.flat[i] = mean + std * noise[(start(name, seed) + i) mod P]

P is prime and so no multiple of a row's length: rows repeat shifted, never alike, and matrices keep their full rank.
A tensor's values depend on its name and the seed, never on the files it shares, and the same values rounded to another
dtype are the other dtype's tensor. Round to nearest even, as torch does; needs numpy alone.

File format: 8 bytes little-endian header length, a JSON header padded to 8 bytes with names, dtypes, shapes and byte
offsets, then the data back to back; https://github.com/huggingface/safetensors (format section).
"""

import json
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from bench.hub_tensors import Tensor, gains

BLOCK = 2**20 - 3
DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}  # safetensors' name, bytes


def encode(values: np.ndarray, dtype: str) -> bytes:
    """float32 values (finite) as the little-endian bytes of `dtype`, rounded to nearest even."""
    if dtype == "bfloat16":  # the upper half of a float32, after adding half a unit (less one where that half is even)
        bits = values.astype("<f4").view("<u4")
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return values.astype("<f2" if dtype == "float16" else "<f4").tobytes()


class Noise:
    """The values of tensors, drawn from one block of noise; see the module's text for the rule."""

    def __init__(self, dtype: str, seed: int, outliers: bool):
        self.dtype, self.seed, self.outliers = dtype, seed, outliers
        self.block = np.random.default_rng(seed).standard_normal(BLOCK, dtype=np.float32)
        self._scaled = lru_cache(maxsize=16)(lambda std: memoryview(encode(self.block * np.float32(std), dtype)))

    def chunks(self, tensor: Tensor) -> Iterator[memoryview | bytes]:
        """The tensor's bytes, in pieces of at most one block."""
        start = zlib.crc32(f"{self.seed} {tensor.name}".encode()) % BLOCK
        if tensor.mean or tensor.outliers:  # a norm: one row, made as a whole
            noise = self.block.take(range(start, start + tensor.size), mode="wrap")
            values = tensor.mean + np.float32(tensor.std) * noise
            if tensor.outliers and self.outliers:
                values[self._outlier_channels(tensor.size)] *= np.float32(gains(tensor.size))
            yield encode(values - np.float32(tensor.minus), self.dtype)
            return
        width, scaled, left = DTYPES[self.dtype][1], self._scaled(tensor.std), tensor.size
        while left:
            run = min(left, BLOCK - start)
            yield scaled[start * width : (start + run) * width]
            start, left = 0, left - run

    def _outlier_channels(self, width: int) -> np.ndarray:
        """The same channels for every norm of this width: a tower's outliers stay where they are."""
        return np.random.default_rng([self.seed, width]).permutation(width)[: len(gains(width))]


def split(tensors: list[Tensor], shards: int) -> list[list[Tensor]]:
    """Neighbouring tensors in `shards` files of about equal size. ValueError: a file would stay empty."""
    total, before = sum(t.size for t in tensors), 0
    files: list[list[Tensor]] = [[] for _ in range(shards)]
    for tensor in tensors:
        files[before * shards // total].append(tensor)
        before += tensor.size
    if not all(files):
        raise ValueError(f"{len(tensors)} tensors do not fill {shards} files: ask for fewer shards")
    return files


def write(
    directory: Path,
    tensors: list[Tensor],
    dtype: str,
    *,
    shards: int = 1,
    seed: int = 0,
    outliers: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes model.safetensors, or `shards` files model-0000i-of-0000n.safetensors with their index.

    dtype: a key of DTYPES, for all tensors. report: called with one line per finished file.
    """
    noise, (code, width), weight_map = Noise(dtype, seed, outliers), DTYPES[dtype], {}
    for number, group in enumerate(split(tensors, shards), start=1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors" if shards > 1 else "model.safetensors"
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for tensor in group:
            begin, end = end, end + tensor.size * width
            header[tensor.name] = {"dtype": code, "shape": tensor.shape, "data_offsets": [begin, end]}
            weight_map[tensor.name] = name
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (directory / name).open("xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in group:
                file.writelines(noise.chunks(tensor))
        report(f"{name}  {len(group):5d} tensors  {end / 1e9:6.2f} GB")
    if shards > 1:
        total = sum(tensor.size for tensor in tensors) * width
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
