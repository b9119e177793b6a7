import torch

from .. import InterpolationMode  # noqa: F401


def resize(image, size, interpolation=None, antialias=True):
    """8-bit frames stay 8-bit on the way, as bicubic ones do in torchvision on every CPU."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    flat = image.reshape(-1, *image.shape[-3:])
    done = torch.nn.functional.interpolate(
        flat, tuple(size), mode=interpolation.value, align_corners=False, antialias=antialias
    )
    return done.reshape(*image.shape[:-2], *size)


def normalize(image, mean, std, inplace=False):
    image = image if inplace else image.clone()
    mean, std = (torch.as_tensor(value, dtype=image.dtype)[:, None, None] for value in (mean, std))
    return image.sub_(mean).div_(std)


def grayscale_to_rgb(image):
    assert image.shape[-3] == 3
    return image


def crop(image, top, left, height, width):
    return image[..., top : top + height, left : left + width]
