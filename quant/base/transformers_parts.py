"""What is made of transformers' classes where a checkpoint is of an older form, which other code was written for. As in
transformers_api.py, an upgrade that changes such a class breaks it here.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def make_image_processor(name: str, settings: dict):
    """The image processor of class `name`, the one that computes with Pillow, of these settings instead of a file's."""
    import transformers

    return getattr(transformers, f"{name}Pil", getattr(transformers, name))(**settings)


def end_rows_in_newline(model: "PreTrainedModel") -> None:
    """Let LLaVA-OneVision's class do with the frames of a video, pooled features [frames, side * side, width], as
    LLaVA-Video does: image_newline ends every row of every frame, and none stands behind the last. (LLaVA-NeXT df17966,
    llava.model.llava_arch: add_token_per_grid, mm_newline_position "grid".)
    """
    import torch

    inner = model.model
    whole: Any = type(inner)

    class EndedRows(whole):
        def apply_pooling(self, features):
            pooled = super().apply_pooling(features)
            side = round(pooled.shape[1] ** 0.5)
            rows = pooled.unflatten(1, (side, side))
            newline = self.image_newline.to(rows).expand(*rows.shape[:2], 1, -1)
            return torch.cat([rows, newline], 2).flatten(1, 2)

        def get_video_features(self, *args, **kwargs):
            found = super().get_video_features(*args, **kwargs)
            found.pooler_output = found.pooler_output[:, :-1]
            return found

    inner.__class__ = EndedRows
