"""Checkpoint: a Hugging Face directory as named tensors, read one at a time and never changed.

What is checked on opening costs header reads only: config.json, the index and the shards it names, that every shard is
whole, that no name occurs twice, that no path leaves the directory. Tensors are validated as they are read.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..base.errors import QuantError, SourceError, UsageError
from .config_json import read_json
from .safetensors_io import TensorInfo, read_header, read_pieces, read_tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth")
FLOATS = {torch.bfloat16, torch.float16, torch.float32}


class Source(Protocol):
    """Where a model's tensors come from, by their hub names: a Checkpoint, or an Export of one (export/reader.py)."""

    dir: Path
    config: dict
    tensors: dict[str, TensorInfo]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are floats."""
        ...

    def load(self, name: str) -> Tensor:
        """The tensor as it is stored, of any shape. Raises QuantError when there is none, or it cannot be read."""
        ...


class Checkpoint:
    """dir: the directory; config: config.json as a dict; tensors: name -> TensorInfo, in the order of the files.

    Raises UsageError when `directory` is no model directory, QuantError when the model in it is damaged.
    """

    def __init__(self, directory: str | Path):
        self.dir = Path(directory)
        if not self.dir.is_dir():
            raise UsageError(f"{self.dir}: no such directory; --model_path names a local copy of the model")
        if not (self.dir / "config.json").is_file():
            raise UsageError(
                f"{self.dir}: holds no config.json; --model_path names the directory of a Hugging Face model"
            )
        self.config = read_json(self.dir / "config.json")
        self.tensors: dict[str, TensorInfo] = {}
        for file in self.shards:
            for name, info in read_header(file).items():
                if name in self.tensors:
                    raise QuantError(f"{file}: {name} is also in {self.tensors[name].file.name}; remove the stale file")
                self.tensors[name] = info
        self._check_index()

    @cached_property
    def shards(self) -> list[Path]:
        """The weight files: those that the index names, or the one model.safetensors. Raises UsageError when there is
        neither, QuantError for an index that names none or leaves the directory.
        """
        if not (self.dir / INDEX).is_file():
            if (self.dir / WEIGHTS).is_file():
                return [self.dir / WEIGHTS]
            found = next((path.name for pattern in PICKLES for path in sorted(self.dir.glob(pattern))), None)
            why = (
                f"{found} is a pickle, which can run code when loaded and is not read; convert it to safetensors"
                if found
                else "download the weights"
            )
            raise UsageError(f"{self.dir}: holds neither {WEIGHTS} nor {INDEX}; {why}")
        files = dict.fromkeys(self._weight_map.values())
        root = self.dir.resolve()
        for name in files:
            # A hub cache keeps its files as links into ../../blobs: the link itself lies in the directory, and that is
            # what counts.
            if not isinstance(name, str) or Path(name).name != name or (root / name).parent != root:
                raise QuantError(
                    f"{self.dir / INDEX}: points to {name!r}, outside the directory; do not trust this checkpoint"
                )
        return [self.dir / name for name in sorted(files)]

    @property
    def files(self) -> list[Path]:
        """All that a result depends on: the weights, and the files beside them."""
        return [*self.shards, *self.side_files]

    @cached_property
    def _weight_map(self) -> dict[str, str]:
        weight_map = read_json(self.dir / INDEX).get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(file, str) for file in weight_map.values())
        ):
            raise QuantError(f"{self.dir / INDEX}: has no weight_map from tensor names to file names; fetch it again")
        return weight_map

    def _check_index(self) -> None:
        if not (self.dir / INDEX).is_file():
            return
        for name, file in self._weight_map.items():
            if name not in self.tensors:
                raise QuantError(
                    f"{self.dir / file}: {name} is missing, which {INDEX} places there; fetch the shard again"
                )
            if self.tensors[name].file.name != file:
                raise QuantError(
                    f"{self.dir / INDEX}: places {name} in {file}, it is in {self.tensors[name].file.name}; index and"
                    " shards are of different downloads"
                )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that holds most of the weights, by bytes. Raises UsageError unless it is a float one."""
        sizes: dict[torch.dtype, int] = {}
        for info in self.tensors.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
        dtype = max(sizes, key=sizes.__getitem__)
        if dtype not in FLOATS:
            raise UsageError(
                f"{self.dir}: most weights are {dtype}; float weights are needed (bfloat16, float16 or float32), is"
                " this a quantized model already?"
            )
        return dtype

    @property
    def nbytes(self) -> int:
        """Size of all tensors, bytes."""
        return sum(info.nbytes for info in self.tensors.values())

    def load(self, name: str) -> Tensor:
        """The tensor, of any shape, in fresh memory, in its stored dtype. Raises QuantError when it is missing or
        cannot be read, SourceError when it holds NaN or Inf.
        """
        if name not in self.tensors:
            raise QuantError(f"{self.dir}: tensor {name} is missing; fetch the model again")
        tensor = read_tensor(self.tensors[name])
        self._check_finite(name, tensor)
        return tensor

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The same as flat pieces [N] that follow each other, for a tensor that is only passed on. Raises what `load`
        does.
        """
        for piece in read_pieces(self.tensors[name]):
            self._check_finite(name, piece)
            yield piece

    def _check_finite(self, name: str, tensor: Tensor) -> None:
        # NaN and Inf survive a minimum and a maximum; one pass, no copy of the size of the tensor.
        if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            raise SourceError(f"{self.tensors[name].file}: {name} holds NaN or Inf; the checkpoint is damaged")

    @cached_property
    def side_files(self) -> list[Path]:
        """Every file that is not a weight, its index, or hidden: tokenizer, processor, templates, licence."""
        weights = {
            path.resolve() for pattern in ("*.safetensors", "*.index.json", *PICKLES) for path in self.dir.glob(pattern)
        }
        return [
            path
            for path in sorted(self.dir.iterdir())
            if path.is_file() and path.resolve() not in weights and not path.name.startswith(".")
        ]
