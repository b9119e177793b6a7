"""Reading a directory as the rules want it: leniently, and under hub names."""

from pathlib import Path

from ...base.errors import QuantError, UsageError
from ...families import family_of
from ...families.family import Family
from ...files.config_json import read_json
from ...files.safetensors_header import read_entries
from .directory import DESCRIPTION, MAX_JSON, OLD_DESCRIPTION, Directory

MAX_COUNT = 10_000  # blocks or heads of a tower, beyond which config.json is damaged


def open_directory(directory: str | Path) -> Directory:
    """Read a directory. Raises UsageError when there is no model directory, or none that this can judge; QuantError
    when config.json cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such directory")
    if not (directory / "config.json").is_file():
        raise UsageError(f"{directory}: holds no config.json; an export is a whole model directory")
    config = read_json(directory / "config.json")
    settings = config.get("quantization_config")
    if isinstance(settings, dict) and settings.get("quant_method") == "compressed-tensors":
        raise UsageError(
            f"{directory}: is in the compressed-tensors format; the rules here are those of the Ascend format"
        )
    opened = Directory(directory, config, _family(config, directory))
    _read_description(opened)
    for file in sorted(directory.glob("*.safetensors")):
        try:
            entries = read_entries(file)
        except QuantError as err:
            opened.damaged.append((file, str(err).removeprefix(f"{file}: ")))
            continue
        for written, entry in entries.items():
            name = hub_name(opened.family, written)
            if name != written:
                opened.renamed[name] = written
            if name in opened.tensors:
                opened.duplicates.append((name, file, opened.tensors[name].file))
            else:
                opened.tensors[name] = entry
    return opened


def _family(config: dict, directory: Path) -> Family:
    """The family, with the numbers of config.json that the rules count with."""
    for key in ("vision_config", "text_config"):
        if not isinstance(config.get(key, {}), dict):
            raise QuantError(f"{directory / 'config.json'}: {key} is no object; copy the file again")
    family = family_of(config, directory)
    for tower in family.towers:
        for number in (tower.blocks(config), *tower.heads(config)):
            if type(number) is not int or not 0 < number <= MAX_COUNT:
                raise QuantError(
                    f"{directory / 'config.json'}: {number!r} blocks or heads in the {tower.name} tower; copy the file"
                    " again"
                )
    return family


def _read_description(opened: Directory) -> None:
    for name in (DESCRIPTION, OLD_DESCRIPTION):
        file = opened.dir / name
        if not file.is_file():
            continue
        opened.description_file = file
        if file.stat().st_size > MAX_JSON:
            return
        try:
            entries = read_json(file).items()
            opened.description = {
                hub_name(opened.family, key): value if value is None or "." not in key else str(value)
                for key, value in entries
            }
            opened.renamed |= {name: key for key, _ in entries if (name := hub_name(opened.family, key)) != key}
        except QuantError as err:
            opened.damaged.append((file, str(err).removeprefix(f"{file}: ")))
        return


def hub_name(family: Family, name: str) -> str:
    """The name on the hub of what transformers may call otherwise: model.visual.blocks.0... is visual.blocks.0..."""
    for hub, module in sorted(family.renames, key=lambda pair: -len(pair[1])):
        if name.startswith(module) and module != hub:
            return hub + name[len(module) :]
    return name
