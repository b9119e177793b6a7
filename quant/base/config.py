"""QuantConfig: every choice of a run, validated, to and from JSON. Imports no torch, so that --help stays fast.

Names follow msmodelslim where the meaning is the same (w_bit, a_bit, dev_type, act_method, disable_names, anti_method),
so that scripts written for it carry over.
"""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .choices import METHODS, PROFILES, ROUNDINGS, SCHEMES, known
from .errors import UsageError

ALPHA = 0.9  # m4's default migration strength
# The photographs shipped here, and the list that `fetch-coco` downloads more by: in the package where that is installed
# from a wheel, beside it in a checkout.
_PACKAGE = Path(__file__).resolve().parents[1]
CALIB_IMAGES = next(
    (place for place in (_PACKAGE / "calibImages", _PACKAGE.parent / "calibImages") if place.is_dir()),
    _PACKAGE / "calibImages",
)
COCO_LIST = CALIB_IMAGES / "coco30.json"
TEXT_FILE = "calibration_text.jsonl"  # in an export: what the model wrote for its own calibration (inputs/written.py)
# Pictures, prompts, answers and passages that share nothing with those to calibrate with: what `verify` measures on.
HELD_OUT = CALIB_IMAGES / "heldout" / "heldout.jsonl"
TEXT_TOKENS = 3200  # at most so many tokens of passages, a fifth of what a 7B computes for 30 photographs
ENOUGH_WORDS = 600  # different tokens of text, below which the loss grows (docs/accuracy.md)
MAX_FRAMES = 32  # of a video; a checkpoint's own bound of 768 is for a server's context
MAX_SAMPLES = 128  # how many samples a run takes from a larger set unless it is told
# What an exported directory depends on only through its packaging: not part of the fingerprint.
PACKAGING = {"dev_type", "part_file_size", "strict", "calib_root"}

PIXELS_PER_TOKEN = 28 * 28  # of Qwen's vision towers: 2 x 2 patches of 14 x 14 pixels make a visual token
PRESETS = {  # --preset: choices that go together; what is chosen one by one takes precedence
    "ocr": {  # pages, forms and signs: small print is enlarged, and 720 x 1280 is kept (1196 tokens)
        "prompt": (
            "Return all text of this document as plain text, in reading order.",
            "What is written in this image?",
            "List every name and value that this document contains.",
        ),
        "min_pixels": 256 * PIXELS_PER_TOKEN,
        "max_pixels": 1280 * PIXELS_PER_TOKEN,
    },
}


class QuantConfig(BaseModel):
    """The choices of one quantization run.

    Raises UsageError with one line, naming the field and the value, when a choice is not one we can carry out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["native", "msmodelslim"] = "native"
    """msmodelslim: the vendor's library does the arithmetic, for users who want its numbers and for comparing."""
    w_bit: int = 8
    a_bit: int = 8
    anti_method: str = "m2"
    """Outlier suppression: one of choices.METHODS."""
    act_method: Literal[1, 2, 3] = 1
    """Range of the activations: 1 min-max, 2 histogram (clipped where the expected output error is least), 3 the better
    of both.
    """
    alpha: float | None = Field(default=None, gt=0, lt=1)
    """m4's migration strength; None means ALPHA. The other methods have none."""
    profile: str = "both"
    """For which server: one of choices.PROFILES."""
    disable_names: tuple[str, ...] = ()
    """Linears to keep float beside those of the family's recipe: names or glob patterns."""
    disable_names_only: tuple[str, ...] | None = None
    """The same in place of the recipe, as the vendor's flag; what servers demand stays float in any case."""
    scheme: str = "W8A8"
    """What int8 linears become: one of choices.SCHEMES."""
    dynamic_names: tuple[str, ...] = ()
    """Linears that become W8A8_DYNAMIC whatever `scheme` says, also where only the family's recipe keeps them float:
    names or glob patterns.
    """
    w_method: str = "nearest"
    """How weights become codes: one of choices.ROUNDINGS."""
    bias_correction: bool = False
    """Static linears take up the mean error of rounding their weights, in quant_bias."""
    vision: Literal["int8", "float"] | None = None
    """The vision tower's linears. None takes what the family's servers support."""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None
    """Of everything that stays float. None takes what the family's servers compute in, or the checkpoint's (bfloat16
    for a float32 checkpoint). Servers take no float32: it is for comparing arithmetic with other implementations, and
    the command line does not offer it.
    """
    dev_type: Literal["npu", "cuda", "cpu"] | None = None
    """None takes the first of NPU, CUDA, CPU that is there. May be given as device_type, the flag's name."""
    prompt: str | tuple[str, ...] | None = None
    """Asked of every calibration image that brings no prompt of its own; of several, the image chooses. None takes the
    family's.
    """
    token_mix: tuple[float, float, float] = (0.4, 0.2, 0.4)
    """Shares of image, prompt and answer tokens among the rows of the language model by which choices are judged."""
    num_samples: int | None = Field(default=None, gt=0)
    calib_text: str = "shipped"
    """Text beside the images: one of choices.CALIB_TEXT, or a file of passages, or of questions with answers."""
    text_tokens: int = Field(default=TEXT_TOKENS, gt=0)
    """How many tokens of samples that are text alone are taken at most."""
    calib_root: Path | None = None
    """A folder that calibration images must not lie outside of; None: they may be anywhere."""
    strict: bool = False
    """Stop at the first sample that cannot be used, instead of leaving it out."""
    min_pixels: int | None = Field(default=None, gt=0)
    max_pixels: int | None = Field(default=None, gt=0)
    fps: float | None = Field(default=None, gt=0)
    """Frames taken of a second of video. None takes the checkpoint's."""
    max_frames: int | None = Field(default=MAX_FRAMES, gt=0)
    """Frames taken of a video at most, the checkpoint's own bound being another; None takes that alone."""
    seed: int = 0
    part_file_size: int = Field(default=4, gt=0)
    """Largest weight file, in GiB."""
    trust_remote_code: bool = False

    def __init__(self, **choices):
        if (device := choices.pop("device_type", None)) is not None:
            if choices.get("dev_type") not in (None, device):
                raise UsageError(
                    f"device_type={device!r} and dev_type={choices['dev_type']!r}: they are two names of one choice;"
                    " leave one out"
                )
            choices["dev_type"] = device
        try:
            super().__init__(**choices)
        except ValidationError as err:
            first = err.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "QuantConfig"
            if first["type"] == "value_error":
                raise UsageError(str(first["ctx"]["error"])) from None
            raise UsageError(f"{field}={first['input']!r}: {first['msg'][0].lower() + first['msg'][1:]}") from None

    @field_validator("w_bit", "a_bit")
    @classmethod
    def _eight_bits(cls, bits: int, info) -> int:
        if bits != 8:
            raise ValueError(
                f"{info.field_name}={bits}: only 8 is supported (W8A8 is what the Ascend servers load for these models)"
            )
        return bits

    @field_validator("disable_names", "disable_names_only", "dynamic_names")
    @classmethod
    def _no_empty_pattern(cls, names, info):
        if names and not all(names):
            raise ValueError(f"{info.field_name} holds an empty pattern; leave it out")
        return names

    @field_validator("token_mix")
    @classmethod
    def _shares(cls, mix):
        if min(mix) < 0 or not sum(mix) > 0:
            raise ValueError(f"token_mix={mix}: shares of image, prompt and answer tokens, none below 0, not all 0")
        return mix

    @field_validator("anti_method", "scheme", "w_method", "profile")
    @classmethod
    def _in_its_table(cls, name: str, info) -> str:
        tables = {"anti_method": METHODS, "scheme": SCHEMES, "w_method": ROUNDINGS, "profile": PROFILES}
        return known(info.field_name, name, tables[info.field_name])

    @model_validator(mode="after")
    def _alpha_belongs_to_m4(self):
        if self.alpha is not None and self.anti_method != "m4":
            raise ValueError(
                f"alpha={self.alpha} is m4's migration strength; anti_method is {self.anti_method}, which has none"
            )
        if self.disable_names and self.disable_names_only is not None:
            raise ValueError(
                f"disable_names={' '.join(self.disable_names)} adds to the recipe and disable_names_only replaces it;"
                " leave one out"
            )
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is above max_pixels={self.max_pixels}")
        return self

    def fingerprint(self) -> str:
        """sha256 of the choices that the exported numbers depend on."""
        return hashlib.sha256(self.model_dump_json(exclude=PACKAGING).encode()).hexdigest()
