"""video: frames of files, GIFs and folders as others read them; what is broken, huge or hostile costs one line."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import av
import clips
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_encoder import refused
from test_untrusted import fuzz, limited

from quant.base.errors import QuantError
from quant.inputs import limited_process, video
from quant.inputs.images import ReadError


def everything(total: int, rate: float | None) -> list[int]:
    return list(range(total))


def read(path: Path, choose=everything) -> tuple[video.Header, list[np.ndarray]]:
    header, found = video.frames(path, choose)
    return header, list(found)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return clips.pictures(12)


@pytest.fixture(scope="module")
def files(tmp_path_factory, pictures) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("videos")
    made = {name: clips.make_file(root / name, pictures) for name in ("a.mp4", "a.mkv", "a.avi", "a.mov")}
    return made | {
        "a.gif": clips.make_gif(root / "a.gif", pictures),
        "folder": clips.make_folder(root / "folder", pictures),
        "no suffix": Path(shutil.copy(made["a.mp4"], root / "no suffix")),
    }


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.mov", "no suffix"])
def test_frames_of_a_file_are_pyavs(files, name):
    """Known by content; each frame as PyAV alone gives it, whichever are asked for."""
    with av.open(str(files[name])) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    header, found = read(files[name])
    assert header == video.Header(12, 10.0, tuple(range(12)), 64, 96)
    assert len(expected) == len(found) == 12 and all(map(np.array_equal, found, expected))
    header, found = read(files[name], lambda total, rate: [1, 4, 4, total - 1])
    assert header.taken == (1, 4, 4, 11)
    assert all(map(np.array_equal, found, [expected[index] for index in header.taken]))


def test_frames_of_a_gif_are_pillows(files, pictures, tmp_path):
    header, found = read(files["a.gif"])
    assert header == video.Header(12, 10.0, tuple(range(12)), 64, 96)
    with Image.open(files["a.gif"]) as image:
        for number in range(12):
            image.seek(number)
            assert np.array_equal(found[number], np.asarray(image.convert("RGB"))), number
    assert np.abs(np.stack(found).astype(int) - np.stack(pictures)).mean() < 12, "256 colours"
    images = [Image.fromarray(picture) for picture in pictures[:4]]
    images[0].save(tmp_path / "b.gif", save_all=True, append_images=images[1:], duration=[100, 300, 100, 300])
    assert read(tmp_path / "b.gif")[0].rate == 5.0
    images[0].save(tmp_path / "c.gif", save_all=True, append_images=images[1:])  # states no duration
    assert read(tmp_path / "c.gif")[0].rate == 10.0
    (tmp_path / "d.mp4").write_bytes((tmp_path / "b.gif").read_bytes())
    assert read(tmp_path / "d.mp4")[0].rate == 5.0, "by content, whatever the name says"


def test_frames_of_a_folder_are_its_images_by_name(files, pictures, tmp_path):
    header, found = read(files["folder"])
    assert header == video.Header(12, None, tuple(range(12)), 64, 96)
    assert all(map(np.array_equal, found, pictures))
    other = clips.make_folder(tmp_path / "other", pictures[:3])
    (other / "notes.txt").write_text("no frame")
    (other / "000.png").rename(other / "009.png")
    assert all(map(np.array_equal, read(other)[1], [pictures[1], pictures[2], pictures[0]]))


def test_a_phones_upright_video_is_turned(files, tmp_path, pictures):
    """By the matrix of its track, as players do: the box tkhd, whose matrix begins 40 bytes behind its name."""
    data = bytearray(files["a.mp4"].read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", data[place : place + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 64 << 16, 0, 1 << 30)
    (tmp_path / "upright.mp4").write_bytes(data)
    header, found = read(tmp_path / "upright.mp4")
    assert (header.height, header.width) == (96, 64)
    lying = read(files["a.mp4"])[1]
    assert all(np.array_equal(one, np.rot90(other, -1)) for one, other in zip(found, lying)), "clockwise"


def test_frames_come_one_by_one(files, monkeypatch):
    """The child waits for the reader: of 12 frames it has given at most what is taken, and what the pipe holds."""
    sent = []
    original = limited_process._exactly

    def exactly(handle, size, deadline):
        sent.append(size)
        return original(handle, size, deadline)

    monkeypatch.setattr(limited_process, "_exactly", exactly)
    _, found = video.frames(files["a.mp4"], everything)
    for number in range(3):
        assert next(found).shape == (64, 96, 3)
        assert sent.count(64 * 96 * 3) == number + 1
    found.close()


def test_identity_is_content(files, tmp_path, pictures):
    moved = Path(shutil.copy(files["a.mp4"], tmp_path / "b.avi"))
    assert video.digest(moved) == video.digest(files["a.mp4"])
    again = clips.make_folder(tmp_path / "again", pictures)
    assert video.digest(again) == video.digest(files["folder"])
    (again / "000.png").rename(again / "zzz.png")
    assert video.digest(again) != video.digest(files["folder"]), "the order of the frames"


# ---- faults


def test_without_pyav_the_extra_is_named(files, tmp_path):
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from quant.inputs import video\nfrom pathlib import Path\n"
        f"print(len(list(video.frames(Path({str(files['a.gif'])!r}), lambda total, rate: [0, 1])[1])))\n"
        f"video.check(Path({str(files['a.mp4'])!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "2\n", "a GIF does without"
    assert "UsageError" in done.stderr and "pip install 'ascend-vlm-quant[video]'" in done.stderr


def test_av_is_imported_only_to_read(files):
    code = "import sys, quant.inputs.encoder, quant.inputs.sources; print('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_what_is_no_video(files, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    refused("text.mp4: cannot be decoded: .*Invalid data", QuantError, video.check, tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").touch()
    refused("empty.mp4: ", QuantError, video.check, tmp_path / "empty.mp4")
    (tmp_path / "empty.gif").write_bytes(b"GIF89a")
    refused("empty.gif: cannot be decoded", QuantError, video.check, tmp_path / "empty.gif")
    refused("none.mp4: no such file", QuantError, video.check, tmp_path / "none.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    refused("pipe.mp4: not a regular file", QuantError, video.check, tmp_path / "pipe.mp4")
    refused("pipe.mp4: not a regular file", QuantError, video.digest, tmp_path / "pipe.mp4")
    (tmp_path / "void").mkdir()
    refused("void: a folder without frames", QuantError, video.check, tmp_path / "void")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    refused("sound.mkv: .*no video in it", QuantError, video.check, tmp_path / "sound.mkv")


def test_frames_of_several_sizes(files, tmp_path, pictures):
    folder = clips.make_folder(tmp_path / "mixed", pictures[:3])
    Image.fromarray(clips.pictures(1, 40, 40)[0]).save(folder / "001.png")
    refused("001.png: has 40x40 pixels, the frame before it 96x64", QuantError, read, folder)


def test_what_is_cut_off(files, tmp_path):
    data = files["a.mkv"].read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) * 2 // 3])
    header, found = read(tmp_path / "cut.mkv", lambda total, rate: [0])
    assert header.total < 12
    damaged = bytearray(files["a.avi"].read_bytes())
    start = damaged.index(b"00dc") + 8
    damaged[start : len(damaged) - 400] = bytes(len(damaged) - 400 - start)
    (tmp_path / "damaged.avi").write_bytes(damaged)
    refused("damaged.avi: ", QuantError, read, tmp_path / "damaged.avi")


@pytest.mark.parametrize(
    "limit, value, text",
    [
        ("MAX_BYTES", 1000, r"bytes, at most 1000 are read"),
        ("MAX_FRAMES", 5, "more than 5 frames; cut it"),
        ("MAX_PIXELS", 64 * 95, "frames of 96x64 pixels, at most 6080 are taken"),
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_limits(files, monkeypatch, name, limit, value, text):
    monkeypatch.setattr(video, limit, value)
    refused(f"{name}: .*{text}", QuantError, read, files[name])


def test_a_playlist_names_no_other_file(files, tmp_path):
    """FFmpeg would follow it to any file, and to servers."""
    listed = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\n" + f"file://{files['a.mov']}\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.mp4").write_text(listed)
    refused("list.mp4: cannot be decoded", QuantError, video.check, tmp_path / "list.mp4")
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{files['a.mov']}'\n")
    refused("concat.mp4: cannot be decoded", QuantError, video.check, tmp_path / "concat.mp4")


def test_a_decoder_that_hangs_or_takes_too_much(files, monkeypatch):
    def job_of(action):
        return lambda path, file, choose: lambda send: action()

    def endless():
        while True:
            pass

    monkeypatch.setattr(video, "SECONDS", 0.5)
    for action, text in (
        (endless, "took more than 0.5 s"),
        (lambda: bytearray(8 << 30), "took more than 1024 MiB, or crashed"),
        (lambda: os._exit(3), "took more than 1024 MiB, or crashed"),
        (lambda: os.kill(os.getpid(), 11), "took more than 1024 MiB, or crashed"),
    ):
        monkeypatch.setattr(video, "_av_job", job_of(action))
        refused(f"a.mp4: decoding {text}", QuantError, read, files["a.mp4"])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif"])
def test_any_damage_costs_one_line(files, tmp_path, name):
    whole, path = files[name].read_bytes(), tmp_path / name

    def run():
        @fuzz(25)
        @given(
            st.lists(st.tuples(st.integers(0, len(whole) - 1), st.binary(min_size=1, max_size=8)), max_size=6),
            st.integers(0, len(whole)),
        )
        def one(changes, length):
            data = bytearray(whole)
            for place, piece in changes:
                data[place : place + len(piece)] = piece
            path.write_bytes(data[:length])
            try:
                header, found = read(path, lambda total, rate: [0, total - 1])
            except ReadError:
                raise
            except QuantError as error:
                assert str(path) in str(error) and "\n" not in str(error)
            else:
                assert all(frame.shape == (header.height, header.width, 3) for frame in found)

        one()

    limited(run)
