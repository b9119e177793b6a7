"""Rules on values that change the model without changing a tensor: against the source's config.json, which --model_path
names, and against what a server allows.
"""

from collections.abc import Iterator

from .config import BOTH
from .directory import Directory, Target, read_json_or_none
from .finding import Finding

# Of the rest some is for training, some is the servers' own, and shapes have rules of their own.
TEXT = (
    "num_attention_heads",
    "rms_norm_eps",
    "hidden_act",
    "head_dim",
    "use_sliding_window",
    "attention_bias",
    "mlp_bias",
)
TOP = (
    "image_token_id",
    "image_token_index",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "projector_hidden_act",
)
NOT_THE_TOWER = ("quantize", "torch_dtype", "dtype", "model_type", "initializer_range", "transformers_version")
MINDIE_TOP_K = 1000  # where no file says one


def same_model(directory: Directory, target: Target) -> Iterator[Finding]:
    """With the source at hand: positions, norms, activations, special tokens and the vision tower are its own. Nothing
    else tells plain positions from those of YaRN: both load.
    """
    source = read_json_or_none(target.source / "config.json") if target.source else None
    if not isinstance(source, dict):
        return
    ours, theirs = _said(directory.config), _said(source)
    for key in sorted(ours.keys() & theirs.keys()):
        if ours[key] != theirs[key]:
            yield Finding(
                f"config.json: {key}",
                f"is {_short(ours[key])}, the source's is {_short(theirs[key])}",
                dict.fromkeys(BOTH, "loads without a word, and computes another model"),
                "take it over from the source's config.json",
            )


def _said(config: dict) -> dict:
    """What config.json says of the model, from either layout. A key that it leaves out is left out: its default is the
    class's, and may be the same; positions are plain where nothing says otherwise.
    """
    text = config.get("text_config")
    merged = {**config, **(text if isinstance(text, dict) else {})}
    said = {key: merged[key] for key in TEXT if merged.get(key) is not None}
    said |= {key: config[key] for key in TOP if config.get(key) is not None}
    vision = config.get("vision_config")
    if isinstance(vision, dict):
        said |= {f"vision_config.{key}": value for key, value in vision.items() if key not in NOT_THE_TOWER}
    parameters = merged.get("rope_parameters")
    rope = dict(parameters) if isinstance(parameters, dict) else {}
    scaling = merged.get("rope_scaling")
    rope |= scaling if isinstance(scaling, dict) else {}
    theta = merged.get("rope_theta", rope.pop("rope_theta", None))
    kind = rope.pop("rope_type", None)
    kind = rope.pop("type", kind) or kind
    said["rope_scaling"] = {"type": "default" if kind in (None, "mrope") else kind, **rope}
    if theta is not None:
        said["rope_theta"] = float(theta) if isinstance(theta, int | float) else theta
    return said


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def sampling(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE compares top_k and the special tokens with vocab_size. Where nothing says a top_k, it is 1000, which small
    vocabularies do not have.
    """
    said = dict(directory.config)
    if not directory.family.mindie_config_alone:
        generation = read_json_or_none(directory.dir / "generation_config.json")
        said |= generation if isinstance(generation, dict) else {}
    words = directory.family.vocab_size(directory.config)
    top_k = said.get("top_k")
    if words < MINDIE_TOP_K and top_k is None:
        yield Finding(
            "config.json: vocab_size",
            f"is {words}; MindIE's top_k is {MINDIE_TOP_K} where nothing says otherwise",
            {"mindie": f"ValueError: self._config.top_k must be between -1 and {words}"},
            f"say a top_k of at most {words} in"
            f" {'config.json' if directory.family.mindie_config_alone else 'generation_config.json'}",
            level="warning",
        )
    ranges = {"top_k": (-1, words), "pad_token_id": (-1, words), "bos_token_id": (0, words - 1)}
    ranges["eos_token_id"] = (0, words - 1)
    for key, (low, high) in ranges.items():
        values = said.get(key)
        numbers = [value for value in (values if isinstance(values, list) else [values]) if type(value) is int]
        if any(not low <= value <= high for value in numbers):
            yield Finding(
                f"config.json or generation_config.json: {key}",
                f"is {_short(values)}, with a vocabulary of {words}",
                {"mindie": f"ValueError: self._config.{key} must be between {low} and {high}"},
                "take vocab_size and the special tokens over from the source",
            )
