"""An Ascend export read back: ours or msmodelslim's, of either layout, static, dynamic or mixed."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..arithmetic.schemes import SCHEMES, QuantizedLinear
from ..base.errors import QuantError, UsageError
from ..families import family_of
from ..files import config_json
from ..files.safetensors_io import TensorInfo, read_header, read_tensor
from .description import DESCRIPTION


@dataclass
class Export:
    """An export directory as it is on disk; tensors are read when asked for. kind: its layout, of DESCRIPTION."""

    dir: Path
    kind: str
    config: dict
    description: dict[str, str]
    tensors: dict[str, TensorInfo]

    @cached_property
    def words(self) -> dict[str, str]:
        """Name of an int8 linear -> its type, a key of SCHEMES."""
        return {
            name.removesuffix(".weight"): word
            for name, word in self.description.items()
            if name.endswith(".weight") and word in SCHEMES and name.removesuffix(".weight") not in self.aliases
        }

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Name that only the description has -> the linear that it is another name of, for a server."""
        linears = [name.removesuffix(".weight") for name in self.tensors if name.endswith(".weight")]
        try:
            return family_of(self.config, self.dir / "config.json").aliases(linears)
        except UsageError:  # another tool's export, whose config.json does not say of which model it is
            return {}

    @property
    def linear_names(self) -> list[str]:
        """The int8 linears."""
        return list(self.words)

    @property
    def dtype(self) -> torch.dtype:
        """What the server computes in."""
        return getattr(torch, config_json.dtype_name(self.config))

    def scheme(self, name: str) -> type[QuantizedLinear]:
        """What the int8 linear `name` is."""
        return SCHEMES[self.words[name]]

    def parts(self, name: str) -> list[str]:
        """What the source's tensor `name` has become: several tensors for the weight of an int8 linear, else itself."""
        linear = name.removesuffix(".weight")
        if linear == name or linear not in self.words:
            return [name]
        return [f"{linear}.{part}" for part in self.scheme(linear).parts]

    def load(self, name: str) -> Tensor:
        """The tensor as it is stored, of any shape and dtype. Raises QuantError when there is none, or as read_tensor
        does.
        """
        if name not in self.tensors:
            raise QuantError(f"{self.dir}: tensor {name} is missing")
        return read_tensor(self.tensors[name])

    def linear(self, name: str) -> QuantizedLinear:
        """The int8 linear as it was exported, ready to run. Whether its tensors agree is not checked here (verify).

        Raises QuantError when a tensor is missing, or not of the dtype and shape that a server expects.
        """
        scheme = self.scheme(name)
        scheme.check(name, self.tensors, self.dtype, where=f"{self.dir}: ")
        return scheme.read(name, self.load, self.dtype, f"{name}.bias" in self.tensors)


def is_export(directory: str | Path) -> bool:
    """Whether there is a description in it."""
    return any((Path(directory) / name).is_file() for name in DESCRIPTION.values())


def read(directory: str | Path) -> Export:
    """Raises UsageError when it is no export, QuantError when it is a damaged one."""
    directory = Path(directory)
    kind = next((kind for kind, name in DESCRIPTION.items() if (directory / name).is_file()), None)
    if kind is None:
        raise UsageError(f"{directory}: holds neither {' nor '.join(DESCRIPTION.values())}; not an Ascend export")
    description = config_json.read_json(directory / DESCRIPTION[kind])
    for name, word in description.items():
        if name.endswith(".weight") and word != "FLOAT" and word not in SCHEMES:
            raise UsageError(f"{directory}: {name} is {word}; what can be read back is {', '.join(SCHEMES)} and FLOAT")
    tensors: dict[str, TensorInfo] = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, info in read_header(file).items():
            if name in tensors:
                raise QuantError(f"{file}: {name} is also in {tensors[name].file.name}; servers refuse it")
            tensors[name] = info
    return Export(directory, kind, config_json.read_json(directory / "config.json"), description, tensors)
