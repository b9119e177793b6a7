"""The calibration inputs that every peer gets: those of this project's own encoder."""

from pathlib import Path


def prepared(model: Path, images: Path) -> list[dict]:
    """The model's keyword arguments for each image of a folder, batch 1, sorted by file name."""
    from quant.base.config import QuantConfig
    from quant.families import family_of
    from quant.files.checkpoint import Checkpoint
    from quant.inputs.samples import prepare

    checkpoint = Checkpoint(model)
    return prepare(images, checkpoint, family_of(checkpoint.config, model), QuantConfig(calib_text="none")).inputs
