"""Makes a checkpoint with random weights at a published model's true shapes, to measure time and memory with.

    python bench/make_checkpoint.py qwen2vl-2b OUT              4.4 GB, as the hub holds it
    python bench/make_checkpoint.py qwen2vl-7b OUT --blocks 2   both towers cut to two blocks
    python bench/make_checkpoint.py qwen2vl-72b OUT --dry_run   names, shapes and bytes; writes nothing

Everything is as in a download: tensor names, dtype, number of weight files, config.json, special tokens at their ids,
chat template, image processor with its limits, and norms with outlier channels. Only the numbers mean nothing. Written
as a stream: memory stays near 100 MB whatever the size. Where: hub_config.py (sizes), hub_tensors.py (names and
shapes), hub_weights.py (values and files), hub_files.py (everything else).
"""

import argparse
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # started by its path, `bench` is not importable

from bench import hub_files, hub_weights  # noqa: E402
from bench.hub_config import SIZES, Size, cut, dtype_of  # noqa: E402
from bench.hub_tensors import tensors  # noqa: E402


def make(
    directory: Path,
    size: Size,
    *,
    shards: int,
    seed: int = 0,
    outliers: bool = True,
    old_llava: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes the checkpoint into `directory`, which is created; weights first, config.json last.

    The dtype of every tensor is config.json's. old_llava: see hub_files.write. report: see hub_weights.write.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dtype = dtype_of(size.config)
    plan = tensors(size.config)
    hub_weights.write(directory, plan, dtype, shards=shards, seed=seed, outliers=outliers, report=report)
    hub_files.write(directory, size, old_llava=old_llava)


def bytes_of(size: Size) -> int:
    """Bytes of the weights of this checkpoint, headers aside."""
    return sum(tensor.size for tensor in tensors(size.config)) * hub_weights.DTYPES[dtype_of(size.config)][1]


def shards_of(size: Size) -> int:
    """Number of weight files, of about equal size, so that they keep about the size limit of the hub's files."""
    return math.ceil(bytes_of(size) / size.shard_bytes)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Random weights at a model's true shapes, in the hub's layout.")
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write; must not exist or be empty")
    parser.add_argument("--blocks", type=int, metavar="N", help="cut both towers to N blocks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry_run", action="store_true", help="print names, shapes and bytes, write nothing")
    chosen = parser.parse_args(arguments)
    if chosen.blocks is not None and chosen.blocks < 1:
        parser.error(f"--blocks {chosen.blocks}: at least 1")

    size = SIZES[chosen.size]
    if chosen.blocks:
        size = size._replace(config=cut(size.config, chosen.blocks, chosen.blocks))
    needed, shards = bytes_of(size), shards_of(size)
    summary = f"{chosen.size}: {len(tensors(size.config))} tensors, {needed / 1e9:.2f} GB in {shards} file(s)"
    if chosen.dry_run:
        width = hub_weights.DTYPES[dtype_of(size.config)][1]
        for tensor in tensors(size.config):
            print(f"{tensor.name:60s} {str(list(tensor.shape)):22s} {tensor.size * width:14,d}")
        print(summary)
        return 0

    if chosen.out.exists() and (not chosen.out.is_dir() or any(chosen.out.iterdir())):
        parser.error(f"{chosen.out}: exists and is not an empty directory; choose another")
    chosen.out.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(chosen.out).free) < needed:
        parser.error(f"{chosen.out}: {needed / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free; see --blocks")
    print(summary, flush=True)
    start = time.perf_counter()
    make(chosen.out, size, shards=shards, seed=chosen.seed, report=lambda line: print(line, flush=True))
    took = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
    print(f"{chosen.out}: {took:.1f} s, {needed / 1e6 / took:.0f} MB/s, peak memory {peak:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
