"""The numbers of a stranger's config.json, as descriptions read them: of the right kind, or an error of one line."""

from ..base.errors import QuantError

# Of blocks, heads, channels, pixels a side, words: far above any model, far below what would take the machine's time
# or memory.
MAX_NUMBER = 1 << 20


def text(config: dict, key: str, default: int | None = None) -> int:
    """A number of the language model: beside vision_config as the hub's Qwen files have it, or in text_config.

    Raises QuantError when it is in neither and has no default, or is no whole number from 1 to MAX_NUMBER.
    """
    return _number(key, config[key] if key in config else _section(config, "text_config").get(key), default, "")


def nested_text(config: dict, key: str, default: int | None = None) -> int:
    """As text(), for models whose language model is described in text_config alone, as transformers reads it."""
    return _number(key, _section(config, "text_config").get(key), default, "text_config ")


def vision(config: dict, key: str, default: int | None = None) -> int:
    """A number of vision_config. Raises QuantError when it is not there and has no default, or is no whole number from
    1 to MAX_NUMBER.
    """
    return _number(key, _section(config, "vision_config").get(key), default, "vision_config ")


def vision_side(config: dict, key: str, default: int) -> int:
    """As vision(), of a square whose sides may be listed: [448, 448]. Raises QuantError for sides that differ."""
    said = _section(config, "vision_config").get(key)
    if isinstance(said, list) and len(said) == 2 and said[0] == said[1]:
        said = said[0]
    return _number(key, said, default, "vision_config ")


def vision_list(config: dict, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Numbers of blocks that vision_config lists. Raises QuantError when it is no list of whole numbers from 0 on."""
    said = _section(config, "vision_config").get(key)
    if said is None:
        return default
    if not isinstance(said, list) or not all(type(number) is int and 0 <= number <= MAX_NUMBER for number in said):
        raise QuantError(f"config.json: vision_config has {key} {said!r:.40}, numbers of blocks were expected")
    return tuple(said)


def _section(config: dict, name: str) -> dict:
    section = config.get(name, {})
    if not isinstance(section, dict):
        raise QuantError(
            f"config.json: {name} is a JSON {type(section).__name__}, an object was expected; fetch it again"
        )
    return section


def _number(key: str, value, default: int | None, where: str) -> int:
    value = default if value is None else value
    if value is None:
        raise QuantError(f"config.json: {where}has no {key}; fetch it again")
    if type(value) is not int or not 0 < value <= MAX_NUMBER:
        raise QuantError(
            f"config.json: {where}has {key} {value!r:.40}, a number from 1 to {MAX_NUMBER} was expected; fetch it again"
        )
    return value
