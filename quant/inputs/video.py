"""Videos -> their frames, 8-bit RGB: a file that PyAV decodes, an animated GIF, or a folder of frames in name order.

A file is a stranger's. It is decoded in a child process with limits (limited_process.py), from one open file and by the
formats below alone: a playlist could name other files, or servers. Frames come one after the other, and only those that
are asked for: how many and which is decided when their number and rate are known, by `choose`.

    frames   of a file, as many as it has packets of its first video stream; PyAV's own rate, on average
    GIF      by the durations that it states; one without counts for a tenth of a second, as in browsers
    folder   images of one size, with no rate of their own

Left out: sound, and colour profiles. Frames of a phone's upright video are turned as it says.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..base.errors import QuantError, UsageError
from .images import SUFFIXES, ReadError, flattened, open_image, read_bytes, regular
from .limited_process import JobFailed, stream_with_limits

if TYPE_CHECKING:
    import numpy as np

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,ogg,asf"  # ffmpeg's names, by content
MAX_BYTES, MAX_FRAMES = 1 << 31, 1 << 18  # of a file; the second are two hours and a half at 30 a second
MAX_PIXELS = 1 << 25  # of a frame; 7680 x 4320 are a little less
SECONDS, LONGEST = 60.0, 600.0  # of wall time for one frame, for all
NO_DURATION = 100  # milliseconds of a GIF's frame that states none, or less than browsers believe
INSTALL = "reading a video needs PyAV: pip install 'ascend-vlm-quant[video]', or pip install av"

Choose = Callable[[int, float | None], list[int]]
"""How many frames there are, and their rate per second (None: not known) -> the numbers of those to take, ascending."""


@dataclass(frozen=True)
class Header:
    """What is known of a video before its frames: of `total` frames, `rate` a second (None: not known), those numbered
    `taken` follow, each (height, width) in pixels.
    """

    total: int
    rate: float | None
    taken: tuple[int, ...]
    height: int
    width: int


def frames(path: Path, choose: Choose) -> "tuple[Header, Iterator[np.ndarray]]":
    """The frames of a video that `choose` takes: their header, and each uint8 [height, width, 3] as it is decoded.

    Raises QuantError in one line, here or from the iterator: not readable, no video, damaged, above one of the limits,
    frames of several sizes; UsageError where PyAV is needed and not there.
    """
    path = Path(path)
    found = _folder(path, choose) if path.is_dir() else _file(path, choose)
    return next(found), found


def check(path: Path) -> None:
    """Raises what frames() does for a video whose first frame cannot be decoded."""
    for _ in frames(path, lambda total, rate: [0])[1]:
        pass


def parts(path: Path) -> list[Path]:
    """The files of a video: its frames, or itself. Raises QuantError for a folder without images."""
    if not path.is_dir():
        return [path]
    found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.name[0] != ".")
    if not found:
        raise QuantError(f"{path}: a folder without frames ({', '.join(SUFFIXES)})")
    if len(found) > MAX_FRAMES:
        raise QuantError(f"{path}: has {len(found)} frames, at most {MAX_FRAMES} are taken")
    return found


def digest(path: Path) -> str:
    """sha256 of a video's content, in hex: of a file's bytes; of a folder's frames in order. Raises QuantError,
    ReadError.
    """
    if path.is_dir():
        each = [hashlib.sha256(read_bytes(part)).hexdigest() for part in parts(path)]
        return hashlib.sha256(json.dumps(each).encode()).hexdigest()
    regular(path)
    try:
        with open(path, "rb") as file:
            content = hashlib.sha256()
            while piece := file.read(1 << 20):
                content.update(piece)
            return content.hexdigest()
    except PermissionError as error:
        raise QuantError(f"{path}: cannot be read: {error.strerror}") from None
    except OSError as error:
        raise ReadError(f"{path}: cannot be read: {error.strerror}") from None


def _folder(path: Path, choose: Choose) -> Iterator[Any]:
    import numpy as np

    files = parts(path)
    taken = choose(len(files), None)
    first = None
    for number in taken:
        image = open_image(files[number])
        if first is None:
            first = image.size
            yield Header(len(files), None, tuple(taken), image.height, image.width)
        elif image.size != first:
            raise QuantError(
                f"{files[number]}: has {image.width}x{image.height} pixels, the frame before it {first[0]}x{first[1]};"
                " frames of a video have one size"
            )
        yield np.asarray(image)


def _file(path: Path, choose: Choose) -> Iterator[Any]:
    import numpy as np

    regular(path)
    try:
        with open(path, "rb") as file:
            if (size := path.stat().st_size) > MAX_BYTES:
                raise QuantError(f"{path}: has {size} bytes, at most {MAX_BYTES} are read")
            is_gif = file.read(4) == b"GIF8"
            file.seek(0)
            job = _gif_job(file, choose) if is_gif else _av_job(path, file, choose)
            messages = stream_with_limits(job, SECONDS, LONGEST, MAX_PIXELS * 3)
            told = json.loads(next(messages))
            header = Header(**{**told, "taken": tuple(told["taken"])})
            yield header
            shape = header.height, header.width, 3
            for message in messages:
                yield np.frombuffer(message, np.uint8).reshape(shape)
    except JobFailed as error:
        raise QuantError(f"{path}: cannot be decoded: {str(error).removeprefix('QuantError: ')}") from None
    except PermissionError as error:
        raise QuantError(f"{path}: cannot be read: {error.strerror}") from None
    except OSError as error:
        raise ReadError(f"{path}: cannot be read: {error.strerror}") from None
    except QuantError as error:
        text = str(error)
        raise type(error)(text if text.startswith(str(path)) else f"{path}: decoding {text}") from None


def _av_job(path: Path, file: BinaryIO, choose: Choose) -> Callable[[Callable[[bytes], None]], None]:
    try:
        import av
    except ImportError:
        raise UsageError(f"{path}: {INSTALL}") from None

    def opened():
        file.seek(0)
        return av.open(file, mode="r", options={"format_whitelist": FORMATS}, metadata_errors="replace")

    def job(send: Callable[[bytes], None]) -> None:
        with opened() as container:
            if not container.streams.video:
                raise QuantError("there is no video in it")
            total = 0
            for packet in container.demux(container.streams.video[0]):
                total += bool(packet.size) and not packet.is_discard
                if total > MAX_FRAMES:
                    raise QuantError(f"more than {MAX_FRAMES} frames; cut it")
            rate = container.streams.video[0].average_rate or container.streams.video[0].guessed_rate
        if not total or not rate:
            raise QuantError(f"it has {total} frames and states no rate" if total else "there is no frame in it")
        with opened() as container:
            stream = container.streams.video[0]
            _area(stream.width, stream.height)
            stream.thread_type = "AUTO"
            decoded = (frame for frame in container.decode(stream))
            _send_frames(send, total, float(rate), choose, _turned(decoded))

    return job


def _turned(decoded: "Iterator[Any]") -> "Iterator[Callable[[], np.ndarray]]":
    import numpy as np

    def picture(frame: Any, width: int, height: int) -> "np.ndarray":
        array = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
        return np.ascontiguousarray(np.rot90(array, frame.rotation // 90))

    size: tuple[int, int] | None = None  # of the first; a stream may change it
    for frame in decoded:
        size = size or (frame.width, frame.height)
        _area(*size)
        yield partial(picture, frame, *size)


def _gif_job(file: BinaryIO, choose: Choose) -> Callable[[Callable[[bytes], None]], None]:
    import numpy as np
    from PIL import Image, ImageSequence

    def opened() -> Image.Image:
        file.seek(0)
        image = Image.open(file, formats=["GIF"])
        _area(*image.size)
        return image

    def picture(frame: Image.Image) -> "np.ndarray":
        return np.asarray(flattened(frame.copy()))

    def job(send: Callable[[bytes], None]) -> None:
        durations: list[float] = []
        for frame in ImageSequence.Iterator(opened()):
            stated = frame.info.get("duration", 0)
            durations.append(stated if stated > 10 else NO_DURATION)
            if len(durations) > MAX_FRAMES:
                raise QuantError(f"more than {MAX_FRAMES} frames; cut it")
        rate = 1000 * len(durations) / sum(durations)
        pictures = (partial(picture, frame) for frame in ImageSequence.Iterator(opened()))
        _send_frames(send, len(durations), rate, choose, pictures)

    return job


def _send_frames(
    send: Callable[[bytes], None],
    total: int,
    rate: float,
    choose: Choose,
    pictures: "Iterator[Callable[[], np.ndarray]]",
) -> None:
    """In the child: the header, then the frames that `choose` takes."""
    if not math.isfinite(rate) or rate <= 0:
        raise QuantError(f"it states {rate} frames a second")
    taken = choose(total, rate)
    if not taken or any(later < sooner for sooner, later in pairwise(taken)):
        raise QuantError(f"no frames to take of {total}")
    number, decoded, first = 0, 0, True
    for index, picture in enumerate(pictures):
        decoded = index + 1
        while number < len(taken) and taken[number] == index:
            array = picture()
            if first:
                height, width = array.shape[:2]
                header = {"total": total, "rate": rate, "taken": taken, "height": height, "width": width}
                send(json.dumps(header).encode())
                first = False
            send(array.tobytes())
            number += 1
        if number == len(taken):
            return
    raise QuantError(f"of its {total} frames {decoded} can be decoded; it is cut off or damaged")


def _area(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise QuantError(f"frames of {width}x{height} pixels, at most {MAX_PIXELS} are taken")
