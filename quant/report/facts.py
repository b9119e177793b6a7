"""What a report is made of, read from disk: the export itself, the records beside it, what verify and evaluate wrote,
small copies of the images.

Only the export must be there. An export by another tool has no quant_recipe.json and quant_run.json; what they would
tell is left out, and the report says so.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..base.config import CALIB_IMAGES, TEXT_FILE
from ..base.errors import QuantError, UsageError
from ..export import reader
from ..export.recipe import RECIPE, RUN_LOG, source_of
from ..families import family_of
from ..families.family import Family
from ..files.checkpoint import read_json
from ..files.fingerprints import model_digest
from ..inputs.images import thumbnail
from ..inputs.reopen import reopen_images
from ..inputs.sources import load_samples
from ..inputs.written import answered, is_written, read_written
from ..verify.sensitivity import GroupCost, Sensitivity
from .loading import Loading, loadings

MOST_THUMBNAILS = 128
NOT_RECORDED = "not recorded"

EXPERT = re.compile(r"(\.experts\.)\d+\.")


@dataclass(frozen=True)
class Layer:
    """A linear as it was exported. shape: (outputs, inputs); why: the reason, where it is float, else its type; scales:
    None where it is float.
    """

    name: str
    shape: tuple[int, ...]
    int8: bool
    why: str
    scales: "Scales | None" = None


@dataclass(frozen=True)
class Scales:
    """An int8 linear's numbers. input_scale, input_offset: None where the server rounds each token by itself; weights:
    (smallest, largest) scale of its rows.
    """

    input_scale: float | None
    input_offset: int | None
    weights: tuple[float, float]


@dataclass(frozen=True)
class Facts:
    """All that a report shows.

    identity: model_digest of the export; doubts: what is not known to be of this export, or of its float model; recipe,
    run: quant_recipe.json and quant_run.json, empty where there is none; verify, evaluation, analysis: what these
    commands wrote; peers: name -> evaluation of another export on the same questions; servers: what each would make of
    the export; thumbnails: sample key -> data: URL.
    """

    export: reader.Export
    identity: str
    doubts: list[str]
    family: Family
    recipe: dict
    run: dict
    layers: list[Layer]
    verify: dict | None
    evaluation: dict | None
    analysis: Sensitivity | None
    peers: dict[str, dict]
    servers: list[Loading]
    thumbnails: dict[str, str]

    def blocks(self, tower: str) -> list[dict]:
        """quant_run.json's entries of a tower, each with its "index"."""
        prefix = next(entry.prefix for entry in self.family.towers if entry.name == tower)
        return [
            {**entry, "index": int(entry["block"][len(prefix) :])}
            for entry in self.run.get("blocks", [])
            if entry["block"].startswith(prefix)
        ]

    def place(self, name: str) -> tuple[str | None, int]:
        """(tower, block) of a linear; (None, -1) outside the blocks."""
        found = self.family.block_of(name)
        return (found[0].name, found[1]) if found else (None, -1)

    def inner(self, name: str) -> str:
        """A linear's name within its block; experts, which are of one type, share theirs."""
        found = self.family.block_of(name)
        return EXPERT.sub(r"\1*.", name.removeprefix(found[0].block(found[1]))) if found else name

    def rows(self, tower: str, wanted: set[str]) -> list[str]:
        """The linears of a tower's block that are `wanted`, in the order of the data."""
        groups = self.family.tower(tower).groups
        known = [name for group in groups for name in (*group.readers, *group.linears, *group.with_experts)]
        return [name for name in dict.fromkeys((*known, *sorted(wanted))) if name in wanted]

    @property
    def bytes_written(self) -> int:
        """Size of the export's tensors, bytes."""
        return sum(info.nbytes for info in self.export.tensors.values())

    @property
    def bytes_16bit(self) -> int:
        """What the model takes with every weight in 16 bits, bytes."""
        scales = {  # the tensors that come with a weight in int8
            part for layer in self.layers if layer.int8 for part in self.export.parts(f"{layer.name}.weight")[1:]
        }
        return sum(2 * prod(info.shape) for name, info in self.export.tensors.items() if name not in scales)


VERIFY_KEYS = ("passed", "verdict", "findings", "thresholds", "blocks", "logits", "free_running")
EVALUATION_KEYS = ("data", "sides", "passed")


def gather(
    directory: str | Path,
    verify: str | None,
    evaluation: str | None,
    images: str | None,
    peers: Sequence[str] = (),
    analysis: str | None = None,
) -> Facts:
    """Read everything. directory: the export; verify, evaluation: the JSON files that these commands wrote; images:
    where the calibration images are, None for those shipped here; peers: evaluations of other exports, to show beside;
    analysis: what `analyze` wrote.

    Raises UsageError for a directory that is no export, for a file that is not there, for one that was measured on
    another export, and for a peer that answered other questions; QuantError for a record that cannot be read.
    """
    export = reader.read(directory)
    family = family_of(export.config, export.dir)
    recipe, run = (read_json(export.dir / name) if (export.dir / name).is_file() else {} for name in (RECIPE, RUN_LOG))
    identity = model_digest(export.dir)
    verified = _result(verify, "verify", VERIFY_KEYS)
    evaluated = _result(evaluation, "evaluate", EVALUATION_KEYS)
    given = [("verify", verify, verified), ("evaluate", evaluation, evaluated)]
    return Facts(
        export=export,
        identity=identity,
        doubts=[doubt for one in given for doubt in _doubts(export.dir, identity, *one)],
        family=family,
        recipe=recipe,
        run=run,
        layers=_layers(export, recipe),
        verify=verified,
        evaluation=evaluated,
        analysis=_analysis(analysis, source_of(export.dir)),
        peers=_peers(peers, evaluation, evaluated),
        servers=loadings(export.dir),
        thumbnails=_thumbnails(images, recipe, family, export.dir),
    )


def _result(file: str | None, command: str, keys: tuple[str, ...]) -> dict | None:
    if file is None:
        return None
    if not Path(file).is_file():
        raise UsageError(f"{file}: no such file; `python -m quant {command} --json FILE` writes it")
    result = read_json(Path(file))
    if missing := [key for key in keys if key not in result]:
        raise QuantError(
            f"{file}: has no {missing[0]}; `python -m quant {command} --json FILE` writes what is expected here"
        )
    return result


def _analysis(file: str | None, source: str | None) -> Sensitivity | None:
    """What `analyze` found. Raises UsageError for a float model that this export was not made from."""
    found = _result(file, "analyze", ("groups", "kl", "positions", "identity"))
    if found is None:
        return None
    if source and found["identity"].get("float", source) != source:
        raise UsageError(
            f"--analysis {file}: is of another float model ({found['identity']['float'][:16]}) than this export was"
            f" made from ({source[:16]})"
        )
    groups = [GroupCost(**{**group, "linears": tuple(group["linears"])}) for group in found["groups"]]
    return Sensitivity(groups, found["kl"], found["positions"])


def _peers(files: Sequence[str], own: str | None, evaluated: dict | None) -> dict[str, dict]:
    """Evaluations of other exports, by their files' names. Raises UsageError for one that is not of the same questions,
    or of another float model.
    """
    peers: dict[str, dict] = {}
    for file in files:
        result = _result(file, "evaluate", EVALUATION_KEYS)
        if evaluated is None or result is None:
            raise UsageError(f"--peers {file}: there is nothing to stand beside; --evaluation FILE names this export's")
        if [side["name"] for side in result["sides"]] != ["float", "int8"]:
            raise UsageError(f"--peers {file}: is not of a float model and its export")
        for what, key, inner in (("questions", "data", "sha256"), ("float model", "identity", "float")):
            one, other = (str(each.get(key, {}).get(inner, "not recorded")) for each in (evaluated, result))
            if one != other:
                raise UsageError(f"--peers {file}: is of other {what} ({other[:16]}) than {own} ({one[:16]})")
        peers[Path(file).name.removesuffix(".json").removesuffix(".evaluation")] = result
    return peers


def _doubts(directory: Path, identity: str, command: str, file: str | None, result: dict | None) -> list[str]:
    """What is not known of a measurement. Raises UsageError for one of another export."""
    if result is None:
        return []
    measured, source = result.get("identity", {}), source_of(directory)
    again = f"`python -m quant {command}` measures it again"
    if measured.get("export", identity) != identity:
        raise UsageError(
            f"{file}: was measured on another export, or before this one was changed: its hash is"
            f" {measured['export'][:16]}, that of {directory} {identity[:16]}; {again}"
        )
    doubts = []
    if "export" not in measured:
        doubts.append(f"{Path(file or '').name} does not say which export it was measured on; {again}.")
    if source and measured.get("float", source) != source:
        doubts.append(
            f"{Path(file or '').name} was measured against another float model ({measured['float'][:16]}) than this"
            f" export was made from ({source[:16]})."
        )
    return doubts


def _layers(export: reader.Export, recipe: dict) -> list[Layer]:
    """Every linear, blocks in the order of the data first, then the rest."""
    int8, reasons = dict.fromkeys(export.linear_names), recipe.get("float", {})
    layers = []
    for name in [*int8, *_float_linears(export, reasons)]:
        shape = export.tensors[f"{name}.weight"].shape
        if name not in int8:
            layers.append(Layer(name, shape, False, reasons.get(name, NOT_RECORDED)))
            continue
        rows = export.load(f"{name}.weight_scale").float()
        static = export.scheme(name).needs_range
        scale = export.load(f"{name}.input_scale").float().item() if static else None
        offset = round(export.load(f"{name}.input_offset").float().item()) if static else None
        scales = Scales(scale, offset, (rows.min().item(), rows.max().item()))
        layers.append(Layer(name, shape, True, export.words[name], scales))
    return layers


def _float_linears(export: reader.Export, reasons: dict) -> list[str]:
    """Those that the recipe names; without a recipe, matrices that are neither embeddings nor int8."""
    if reasons:
        return [name for name in reasons if f"{name}.weight" in export.tensors]
    names = (
        name.removesuffix(".weight")
        for name, info in export.tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2
    )
    return [name for name in names if name not in set(export.linear_names) and "embed" not in name]


def _thumbnails(images: str | None, recipe: dict, family: Family, directory: Path) -> dict[str, str]:
    """Small JPEGs of the samples that are found, by content, in `images` or among the photographs shipped here, with
    the answers that the model wrote for the export in `directory`.
    """
    wanted = {sample["sha256"] for sample in recipe.get("samples", [])}
    source = Path(images or CALIB_IMAGES)
    if not wanted or not (images or source.is_dir()):
        return {}
    config = recipe.get("config", {})
    prompt = config.get("prompt") or family.prompt
    alone = config.get("calib_text", "none") == "none"
    prompts = prompt if isinstance(prompt, str) else tuple(prompt)
    samples = load_samples(source, prompts, None, 0, pictures_only=alone).samples
    for file in (directory / TEXT_FILE, Path(config.get("calib_text", ""))):
        if is_written(file):
            samples += read_written(file).put_into([answered(sample, "") for sample in samples])
    found = [sample for sample in samples if sample.key in wanted and sample.images][:MOST_THUMBNAILS]
    return {sample.key: thumbnail(reopen_images(sample)[0]) for sample in found}
