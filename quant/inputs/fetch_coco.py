"""Download the photographs of calibImages/coco30.json (COCO val2017, CC BY 2.0) into a folder for --calib_images.

Each goes to NAME.part first, is decoded and held against the listed size, and only then gets its name: a file without
.part is whole. A second run leaves whole files alone and continues a .part by HTTP Range; a server that does not know
Range is asked for all of it. SOURCES.json beside the photographs holds what CC BY asks for: where each is from, under
which licence.

Left out: retries (run it again), parallel downloads, and checksums, which COCO does not publish for single files.
"""

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from ..base.config import COCO_LIST
from ..base.errors import QuantError, UsageError, one_line
from .images import open_image

LICENCES = {4: ("CC BY 2.0", "https://creativecommons.org/licenses/by/2.0/")}  # COCO's number -> name, text
TIMEOUT = 30  # seconds without an answer
CHUNK = 1 << 16  # bytes


def fetch_coco(
    target_dir: Path,
    list_file: Path = COCO_LIST,
    base_url: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Download what the list names and is not there yet; returns the photographs' paths, in the list's order.

    base_url: a mirror; FILE is then fetched from base_url/FILE instead of the list's coco_url.
    Raises UsageError: a list that cannot be used. Raises QuantError: no network, an answer that is not the photograph,
    a folder that cannot be written. What was whole before stays; a broken-off download stays as .part, to be continued.
    """
    rows = _read_list(Path(list_file))
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise UsageError(f"base_url {base_url}: it must begin with http:// or https://")
    target = Path(target_dir)
    there, fetched = [], 0
    try:
        try:
            for number, row in enumerate(rows, 1):
                path = target / row["file_name"]
                if _fault(path, row):
                    _fetch(f"{base_url.rstrip('/')}/{path.name}" if base_url else row["coco_url"], path, row)
                    fetched += 1
                    report(f"[{number:>2}/{len(rows)}] {path.name}  {row['width']}x{row['height']}")
                there.append(row)
        finally:
            if there:
                _write_sources(target, there)
    except QuantError as error:
        state = f"{len(there)} of {len(rows)} photographs are in {target}, run again to continue"
        raise QuantError(f"{error} ({state})") from None
    except OSError as error:
        raise QuantError(f"{target}: cannot be written: {error.strerror}") from None
    report(f"{len(rows)} photographs in {target} ({fetched} fetched now), their sources in {target / 'SOURCES.json'}")
    return [target / row["file_name"] for row in rows]


def _read_list(file: Path) -> list[dict]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or one_line(error)}") from None
    kinds = {
        "id": int,
        "file_name": str,
        "coco_url": str,
        "flickr_url": str,
        "license": int,
        "width": int,
        "height": int,
    }
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{file}: expected a list of photographs")
    for number, row in enumerate(rows, 1):
        for key, kind in kinds.items():
            if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                raise UsageError(f"{file}: entry {number} has no {key} ({kind.__name__})")
        if not re.fullmatch(r"\w[\w.-]*", row["file_name"], re.ASCII):  # it becomes a path
            raise UsageError(f"{file}: entry {number}: {row['file_name']!r} is not a plain file name")
        if not row["coco_url"].startswith(("http://", "https://")):
            raise UsageError(f"{file}: entry {number}: {row['coco_url']!r} is not an http address")
        if row["license"] not in LICENCES:
            raise UsageError(
                f"{file}: entry {number} has COCO's licence {row['license']}, only 4 (CC BY 2.0) is fetched"
            )
    return rows


def _fault(path: Path, row: dict) -> str | None:
    """What is wrong with a file as the listed photograph; None if nothing is."""
    try:
        width, height = open_image(path).size
    except QuantError as error:
        return str(error).removeprefix(f"{path}: ")
    if (width, height) != (row["width"], row["height"]):
        return f"{width}x{height} pixels, the list says {row['width']}x{row['height']}"
    return None


def _fetch(url: str, path: Path, row: dict) -> None:
    part = path.with_name(path.name + ".part")
    resumed = part.exists()
    try:
        _download(url, part)
    except urllib.error.HTTPError as error:
        if not (resumed and error.code == 416):  # Range Not Satisfiable: the part is as long as the file, or longer
            raise QuantError(f"{url}: the server answered {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        raise QuantError(f"{url}: cannot be fetched: {one_line(getattr(error, 'reason', error))}") from None
    fault = _fault(part, row)
    if not fault:
        return os.replace(part, path)
    part.unlink()  # it would spoil the next run too
    if resumed:  # what was there before may have been the fault
        return _fetch(url, path, row)
    raise QuantError(f"{url}: not the photograph: {fault}")


def _download(url: str, part: Path) -> None:
    """Append to `part` what is missing. Raises QuantError when the connection ends before the announced length."""
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        continues = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        done = done if continues else 0
        length = answer.headers.get("Content-Length")
        part.parent.mkdir(parents=True, exist_ok=True)  # not before: without a network nothing is left behind
        with open(part, "ab" if continues else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                file.flush()
            received = file.tell()
    if length is not None and received < done + int(length):
        raise QuantError(f"{url}: the connection ended after {received} of {done + int(length)} bytes")


def _write_sources(target: Path, rows: list[dict]) -> None:
    """SOURCES.json: for each photograph its COCO number, its page on Flickr (which names the author), its licence."""
    sources = []
    for row in rows:
        photo = re.search(r"/(\d+)_[^/]*$", row["flickr_url"])  # .../7434/9138147604_c6225224b8_z.jpg
        name, text = LICENCES[row["license"]]
        sources.append(
            {
                "file": row["file_name"],
                "from": f"COCO val2017, image {row['id']}, {row['coco_url']}",
                "flickr_page": f"https://www.flickr.com/photo.gne?id={photo[1]}" if photo else None,
                "flickr_url": row["flickr_url"],
                "licence": name,
                "licence_url": text,
                "changes": "none since COCO",
            }
        )
    part = target / "SOURCES.json.part"
    part.write_text(json.dumps(sources, indent=1) + "\n", encoding="utf-8")
    os.replace(part, target / "SOURCES.json")
