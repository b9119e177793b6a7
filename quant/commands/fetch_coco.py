"""python -m quant fetch-coco"""

from ..inputs.fetch_coco import add_arguments, run

__all__ = ["add_arguments", "run"]
