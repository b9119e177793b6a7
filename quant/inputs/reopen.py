"""The files of a sample, opened again: what is in them now, and whether it is still what was checked."""

from PIL import Image

from ..base.errors import QuantError
from . import video
from .images import decode_image, read_bytes
from .sample import Picture, Sample, key_of


def image_data(sample: Sample) -> list[bytes]:
    """The bytes of each image. Raises QuantError, ReadError as read_bytes does."""
    return [image.data if isinstance(image, Picture) else read_bytes(image) for image in sample.images]


def reopen_images(sample: Sample) -> list[Image.Image]:
    """The sample's images as open_image has them. Raises QuantError when a file, of an image or a video, has changed
    since the key was taken.
    """
    data = image_data(sample)
    if (key := key_of(data, sample.prompt, sample.answer, video_digests(sample))) != sample.key:
        raise QuantError(
            f"{', '.join(map(str, sample.pictures))}: changed since it was checked: with its prompt sha256 {key[:16]},"
            f" it was {sample.key[:16]}"
        )
    return [decode_image(each, image) for each, image in zip(data, sample.images)]


def video_digests(sample: Sample) -> list[str]:
    """Of each video. Raises QuantError, ReadError as video.digest does."""
    return [video.digest(path) for path in sample.videos]
