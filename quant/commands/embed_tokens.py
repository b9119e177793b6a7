"""python -m quant embed-tokens: the language model's embedding table as a file of its own."""

import argparse

DTYPES = ("bfloat16", "float16", "float32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.add_argument("model_path", metavar="DIR", help="directory of the float checkpoint; never written to")
    parser.add_argument(
        "out", metavar="OUT", help="file to write, such as embed_tokens.bin; what it holds is written to OUT.json"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the numbers (default: the checkpoint's)")


def run(args: argparse.Namespace) -> int:
    """0. Raises UsageError, QuantError as embed_tokens.extract does."""
    import torch

    from ..base.console import size
    from ..export.embed_tokens import extract

    described = extract(args.model_path, args.out, getattr(torch, args.dtype) if args.dtype else None)
    rows, hidden = described["shape"]
    print(f"tensor  {described['tensor']}")
    print(f"shape   {rows} x {hidden} (vocabulary x hidden), {described['layout']}")
    print(f"dtype   {described['dtype']}")
    print(f"sha256  {described['sha256']}")
    print(f"result  {args.out}, {size(described['bytes'])}; described in {args.out}.json")
    return 0
