"""From a finished export to any other format, without calibration: the smoothing is folded in, and codes and scales are
all there.

    save_type           act       an int8 linear becomes (schemes.py)
    ascendV1            static    W8A8
    ascendV1            dynamic   W8A8_DYNAMIC, by leaving out what holds the activations' ranges
    ascendV1            mix       W8A8_MIX: per token in prefill, per tensor in decode
    ascendV1            as is     each what it was; for a run that was asked for dynamic linears
    mindie              static    W8A8, under the names of older MindIE releases
    compressed-tensors  dynamic, static                                                         compressed_tensors.py

Files are gone through tensor by tensor; those that do not change are shared. Left out: from a dynamic linear back to a
static one, whose scales are not there.
"""

from collections.abc import Collection
from pathlib import Path

from ..arithmetic.schemes import SCHEMES
from ..base.config import QuantConfig
from ..base.errors import QuantError, UsageError
from ..base.output import FILE_MODE, appearing, check_output, check_space, link_or_copy
from ..families.family import Family
from ..files.config_json import read_json, write_json
from ..files.safetensors_io import SafetensorsWriter, TensorInfo, read_tensor
from . import compressed_tensors
from .card import CARD, card
from .description import DESCRIPTION, MINDIE_NAMES, VERSION, model_type
from .layout import file_names, weights_stem
from .reader import Export, read
from .recipe import RECIPE, settings

WORDS = {"static": "W8A8", "dynamic": "W8A8_DYNAMIC", "mix": "W8A8_MIX"}
AS_IS = "as is"
SAVE_TYPES = {
    "ascendV1": ("static", "dynamic", "mix"),
    "mindie": ("static",),
    "compressed-tensors": ("dynamic", "static"),
}
"""Format -> how it can round activations, the default first."""


def resolve(save_type: str, act: str | None, words: Collection[str] = ("W8A8",)) -> str:
    """`act`, or what None or AS_IS stand for: the format's default; AS_IS in the Ascend format with dynamic linears.

    words: the types of the linears that are to be written. Raises UsageError for a format, or an act, that there is
    not, and for one that needs what dynamic linears do not have.
    """
    if save_type not in SAVE_TYPES:
        raise UsageError(f"save_type {save_type}: there are {', '.join(SAVE_TYPES)}")
    act = None if act == AS_IS else act
    if act is not None and act not in SAVE_TYPES[save_type]:
        raise UsageError(f"--act {act}: {save_type} has {' and '.join(SAVE_TYPES[save_type])}")
    if all(SCHEMES[word].needs_range for word in words):
        return act or SAVE_TYPES[save_type][0]
    if act is None and save_type == "ascendV1":
        return AS_IS
    act = act or SAVE_TYPES[save_type][0]
    if act != "dynamic":
        raise UsageError(
            f"--save_type {save_type} --act {act}: some linears are W8A8_DYNAMIC; only static W8A8 (and W8A8_MIX, which"
            " holds it) has the ranges of activations; use --act dynamic, which ascendV1 and compressed-tensors have"
        )
    return act


def name_of(save_type: str, act: str, words: Collection[str], family: Family | None = None) -> str:
    """A format in words, as name_in() finds it in what was written. words: the types of the int8 linears; family: the
    model's.
    """
    if save_type == "compressed-tensors":
        return f"{save_type}, {act}"
    return f"{save_type}, {model_type({WORDS.get(act, word) for word in words}, family)}"


def name_in(directory: Path) -> str:
    """The format of an exported directory, in words. Raises QuantError when a file of it is damaged."""
    for save_type, file in DESCRIPTION.items():
        if (directory / file).is_file():
            return f"{save_type}, {read_json(directory / file).get('model_quant_type')}"
    return f"compressed-tensors, {compressed_tensors.act_of(read_json(directory / 'config.json'))}"


def export(source: str | Path, directory: str | Path, save_type: str = "ascendV1", act: str | None = None) -> Path:
    """Write the export in `source`, of either Ascend layout, to `directory` in another format; returns the directory.

    `directory` must be absent or empty. Raises UsageError for choices that cannot be carried out or a source that is no
    export, QuantError when it is damaged or the disk is full.
    """
    act = resolve(save_type, act)
    opened = read(source)
    if act != "dynamic" and (dynamic := [name for name, word in opened.words.items() if word == "W8A8_DYNAMIC"]):
        raise UsageError(
            f"{opened.dir}: {dynamic[0]} is W8A8_DYNAMIC; only static W8A8 (and W8A8_MIX, which holds it) has the"
            f" ranges that {save_type} with --act {act} needs; quantize again, or use --act dynamic"
        )
    target = check_output(directory, opened.dir)
    with appearing(target) as partial:
        write(opened, partial, save_type, act)
    return target


def write(export: Export, directory: Path, save_type: str, act: str) -> None:
    """As export(), into a directory that exists and is empty. act: as resolve() has it for the export's linears.

    Raises QuantError when the disk refuses.
    """
    if save_type == "compressed-tensors":
        compressed_tensors.write(export, directory, act)
    else:
        _write_ascend(export, directory, save_type, act)
    for file in side_files(export):
        link_or_copy(file, directory / file.name)
    try:
        (directory / CARD).write_text(card(directory), encoding="utf-8")
    except OSError as err:
        raise QuantError(f"{directory / CARD}: {err.strerror}") from None
    for file in directory.iterdir():
        file.chmod(FILE_MODE)


def side_files(export: Export) -> list[Path]:
    """What stands beside weights, description and config.json, and is the same in every format."""
    skip = {"config.json", CARD, *DESCRIPTION.values()}
    return [
        file
        for file in sorted(export.dir.iterdir())
        if file.is_file()
        and file.name not in skip
        and file.suffix != ".safetensors"
        and not file.name.endswith(".index.json")
    ]


def _write_ascend(export: Export, directory: Path, save_type: str, act: str) -> None:
    words = {linear: WORDS.get(act, word) for linear, word in export.words.items()}
    before = {f"{linear}.{part}" for linear in words for part in export.scheme(linear).parts}
    after = {f"{linear}.{part}": word for linear, word in words.items() for part in SCHEMES[word].parts}
    after |= {f"{alias}.weight": words[linear] for alias, linear in export.aliases.items() if linear in words}
    kept = {name: info for name, info in export.tensors.items() if name in after or name not in before}
    word = model_type(words.values())
    names = _write_weights(export, kept, directory, weights_stem(word))
    if len(set(names.values())) > 1:
        total = sum(info.nbytes for info in kept.values())
        index = {"metadata": {"total_size": total}, "weight_map": names}
        write_json(directory / f"{weights_stem(word)}.safetensors.index.json", index)
    described = {
        name: after.get(name, kind) for name, kind in export.description.items() if name in kept or name not in before
    }
    if act == AS_IS:  # not a word of one linear's for all
        word = export.description.get("model_quant_type", word)
    write_json(directory / DESCRIPTION[save_type], {**described, "version": VERSION, "model_quant_type": word})
    write_json(directory / "config.json", _config(export, save_type, act, word))


def _write_weights(export: Export, kept: dict[str, TensorInfo], directory: Path, stem: str) -> dict[str, str]:
    """Tensor name -> file name. The tensors stay in the files that they are in; a file that loses none is shared."""
    files = sorted({info.file for info in export.tensors.values()})
    if len(kept) < len(export.tensors):
        check_space(directory, sum(info.nbytes for info in kept.values()))
    names = {}
    for file, name in zip(files, file_names(stem, len(files))):
        target = directory / name
        inside = {name: info for name, info in kept.items() if info.file == file}
        if all(name in kept for name, info in export.tensors.items() if info.file == file):
            link_or_copy(file, target)
        else:
            writer = SafetensorsWriter(target, {name: (info.dtype, info.shape) for name, info in inside.items()})
            try:
                for name, info in inside.items():
                    writer.write(name, read_tensor(info))
                writer.close()
            finally:
                writer.abandon()
        names.update(dict.fromkeys(inside, target.name))
    return names


def _config(export: Export, save_type: str, act: str, word: str) -> dict:
    config = {key: value for key, value in export.config.items() if key != "quantization_config"}
    config["quantize"] = MINDIE_NAMES[word]
    if act == "dynamic" and "vision_config" in config:  # MindIE's vision tower knows static int8 or float
        config["vision_config"] = {key: value for key, value in config["vision_config"].items() if key != "quantize"}
    if save_type == "mindie":
        config["quantization_config"] = _settings(export)
    return config


def _settings(export: Export) -> dict:
    """The block as the run had it; an export without a recipe is not ours, and brings its own, or gets one that claims
    no smoothing.
    """
    if (export.dir / RECIPE).is_file():
        return settings(QuantConfig(**read_json(export.dir / RECIPE).get("config", {})))
    return export.config.get("quantization_config") or settings(QuantConfig(anti_method="none"))
