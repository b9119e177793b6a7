"""A dump: intermediate features of a model on fixed inputs, on disk. Only numpy is needed, so that any implementation
can write one.

    DIR/manifest.json            {"format", "model", "samples": [{"name", "inputs_sha256"}],
                                  "features": [names, in the order of execution], ...}
    DIR/0000/NAME.npy            feature NAME of sample 0, float32, of whatever shape
    DIR/0000/inputs/NAME.npy     the model's input NAME, in its own dtype

A feature is called as the hub calls the module whose output it is ("model.layers.0",
"model.layers.0.self_attn.q_proj"); another implementation may use other names, compare takes a map. Of the manifest,
compare needs samples and features; "model" (its identity), "source" (of an export, that of its float model) and
"repeat" (feature -> largest difference between two runs) if they are there.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from ..base.errors import QuantError, UsageError

MANIFEST, INPUTS, FORMAT = "manifest.json", "inputs", 1


class Writer:
    """Writes a dump into `directory`, which must be absent or empty, else a UsageError is raised; QuantError when a
    file cannot be written.

    writer = Writer("dump", model="my engine")
    writer.sample("cat.png", {"input_ids": ids, "pixel_values": pixels})
    writer.feature("model.layers.0", array)        # of the last sample; in the order of execution
    writer.close()
    """

    def __init__(self, directory: str | Path, model: str, **facts):
        self.dir = Path(directory)
        if self.dir.is_dir() and any(self.dir.iterdir()) or self.dir.is_file():
            raise UsageError(f"{self.dir}: is not empty; a dump needs a directory of its own")
        self.manifest = {"format": FORMAT, "model": model, **facts, "samples": [], "features": []}

    def sample(self, name: str, inputs: dict[str, np.ndarray]) -> int:
        """Begin a sample. Returns its number."""
        number = len(self.manifest["samples"])
        self.manifest["samples"].append({"name": name, "inputs_sha256": inputs_digest(inputs)})
        for key, value in inputs.items():
            self._save(self.dir / f"{number:04d}" / INPUTS / f"{key}.npy", np.asarray(value))
        return number

    def feature(self, name: str, value: np.ndarray, sample: int | None = None) -> None:
        """Save a feature of the last sample begun, or of the one numbered `sample`."""
        number = len(self.manifest["samples"]) - 1 if sample is None else sample
        if name not in self.manifest["features"]:
            self.manifest["features"].append(name)
        self._save(self.dir / f"{number:04d}" / f"{name}.npy", np.asarray(value, dtype=np.float32))

    def _save(self, file: Path, value: np.ndarray) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, value)
        except OSError as err:
            raise QuantError(f"{file}: {err.strerror}") from None

    def close(self) -> None:
        """Write the manifest, which makes the directory a dump."""
        (self.dir / MANIFEST).write_text(json.dumps(self.manifest, indent=1) + "\n", encoding="utf-8")


class Dump:
    """A dump on disk. Raises UsageError when `directory` is none."""

    def __init__(self, directory: str | Path):
        self.dir = Path(directory)
        file = self.dir / MANIFEST
        if not file.is_file():
            raise UsageError(
                f"{self.dir}: holds no {MANIFEST}; `python -m quant dump` or quant.compare.features.Writer makes one"
            )
        try:
            self.manifest = json.loads(file.read_text(encoding="utf-8"))
            self.features: list[str] = list(self.manifest["features"])
            self.digests = [sample["inputs_sha256"] for sample in self.manifest["samples"]]
            self.names = [sample.get("name", str(number)) for number, sample in enumerate(self.manifest["samples"])]
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise QuantError(f"{file}: damaged, or not of a dump ({type(err).__name__}: {err})") from None

    def load(self, name: str, sample: int) -> np.ndarray:
        """Feature `name` of a sample, float32 of any shape. Raises QuantError when its file is missing or no array."""
        return self._load(self.dir / f"{sample:04d}" / f"{name}.npy")

    def inputs(self, sample: int) -> dict[str, np.ndarray]:
        """The model's inputs of a sample, name -> array. Raises QuantError when the manifest is of other ones."""
        folder = self.dir / f"{sample:04d}" / INPUTS
        inputs = {file.stem: self._load(file) for file in sorted(folder.glob("*.npy"))}
        if inputs_digest(inputs) != self.digests[sample]:
            raise QuantError(f"{folder}: not the inputs that {MANIFEST} records; dump again")
        return inputs

    def _load(self, file: Path) -> np.ndarray:
        try:
            return np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as err:
            raise QuantError(f"{file}: {err}") from None


def inputs_digest(inputs: dict[str, np.ndarray]) -> str:
    """sha256 over names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(inputs):
        value = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
