"""Grey images: the digits, Fashion-MNIST and its idx files, and how their pixels become binary."""

from __future__ import annotations

import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.data.dataset import Dataset, find_folder
from models.errors import DataError

__all__ = [
    "BINARISATIONS",
    "Images",
    "binarise_once",
    "draw_pixels",
    "load_digits",
    "load_fashion_mnist",
    "read_idx_images",
]

BINARISATIONS: dict[str, str] = {
    "dynamic": "a fresh Bernoulli draw of every pixel each time that an image is used (test images: one fixed draw)",
    "static": "one Bernoulli draw of every pixel, the same for every run",
    "threshold": "a pixel is 1 where its intensity is above one half",
    "none": "values as they are: for data that are no images",
}

DIGITS_TEST = 297
"""Number of digits held out; the other 1500 are trained on."""
DIGITS_SPLIT_SEED = 0
BINARISATION_SEED = 2026
"""Seed of static binarisation and of every test set's: part of the data, not of a run."""

IDX_IMAGES_MAGIC = 2051
FASHION_MNIST_FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
PACKAGE_FOLDERS = tuple(
    Path(prefix) / "share" / "datasets" / "fashion-mnist" for prefix in ("/usr", "/usr/local", sys.prefix)
)
"""Where Debian's package dataset-fashion-mnist puts its files, under the usual prefixes."""


@dataclass(frozen=True)
class Images(Dataset):
    """A data set of grey images, split into train and test.

    - `train` `[n, pixels]`, `test` `[m, pixels]`: intensities in [0, 1], float32.
    - `shape`: height and width of an image, in pixels.
    - `origin`: one sentence on where it is from and how it is split.

    Raises `DataError` for no images, NaN, or values outside [0, 1].
    """

    name: str
    train: Tensor
    test: Tensor
    shape: tuple[int, int]
    origin: str
    labels: Tensor | None = None
    element = "image"
    elements = "images"

    def __post_init__(self) -> None:
        self.check_splits([self.shape[0] * self.shape[1]])
        for split, images in (("train", self.train), ("test", self.test)):
            low, high = float(images.min()), float(images.max())
            if low < 0 or high > 1:
                raise DataError(
                    f"The {split} images of {self.name!r} have values from {low:g} to {high:g}; scale intensities to "
                    "[0, 1]."
                )


def load_digits(data_dir: Path | None = None) -> Images:
    """Scikit-learn's 1797 handwritten digits, 8 x 8 pixels: 1500 to train, 297 to test, shuffled with a fixed seed."""
    if data_dir is not None:
        raise DataError("The digits come with scikit-learn and are read from no folder: leave out --data-dir.")
    from sklearn.datasets import load_digits as sklearn_digits

    bunch: Any = sklearn_digits()
    images = torch.as_tensor(bunch.data, dtype=torch.float32) / 16.0
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(DIGITS_SPLIT_SEED))
    images = images[order]
    return Images(
        "digits",
        images[:-DIGITS_TEST],
        images[-DIGITS_TEST:],
        (8, 8),
        f"scikit-learn's digits, {len(images) - DIGITS_TEST} to train and {DIGITS_TEST} to test, "
        f"split with seed {DIGITS_SPLIT_SEED}",
    )


def load_fashion_mnist(data_dir: Path | None = None) -> Images:
    """Fashion-MNIST, 28 x 28 pixels, with its own split of 60000 + 10000, from the folder named or Debian's package.

    Raises `DataError` if the folder or one of its files is not there, or a file is damaged.
    """
    folder = find_folder(
        PACKAGE_FOLDERS,
        data_dir,
        f"the idx files {' and '.join(f'{stem}.gz' for stem in FASHION_MNIST_FILES.values())}",
        "Fashion-MNIST is not installed. Run `apt-get install dataset-fashion-mnist`",
    )
    splits = {split: read_idx_images(_idx_file(folder, stem)) for split, stem in FASHION_MNIST_FILES.items()}
    shapes = {(images.shape[1], images.shape[2]) for images in splits.values()}
    if len(shapes) != 1:
        raise DataError(f"Train and test images in {folder} differ in size: {sorted(shapes)}.")
    train, test = (splits[split].flatten(1).float() / 255.0 for split in ("train", "test"))
    return Images("fashion-mnist", train, test, shapes.pop(), f"Fashion-MNIST's own split, {len(train)} + {len(test)}")


def _idx_file(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.is_file():
            return path
    raise DataError(f"{folder} holds neither {stem}.gz nor {stem}.")


def read_idx_images(path: Path) -> Tensor:
    """The images of an idx3 file, gzipped or not: `[number, height, width]`, uint8.

    Raises `DataError` for a damaged archive, a wrong magic number, or a file shorter or longer than its header says.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        # Unlike `gzip.open`, a decompressor hands over what there is of a truncated archive, so that it can be counted.
        try:
            content = zlib.decompressobj(wbits=31).decompress(content)
        except zlib.error as error:
            raise DataError(f"{path} is not a sound gzip file ({error}); get it anew.") from error
    if len(content) < 16:
        raise DataError(f"{path} is truncated: an idx header has 16 bytes, found {len(content)}; get it anew.")
    magic, number, height, width = struct.unpack(">4I", content[:16])
    if magic != IDX_IMAGES_MAGIC:
        raise DataError(f"{path} is no idx file of images: its magic number is {magic}, expected {IDX_IMAGES_MAGIC}.")
    expected = 16 + number * height * width
    if len(content) != expected:
        state = "truncated" if len(content) < expected else "longer than its header says"
        raise DataError(f"{path} is {state}: expected {expected} bytes, found {len(content)}; get it anew.")
    return torch.frombuffer(bytearray(content[16:]), dtype=torch.uint8).view(number, height, width)


def binarise_once(intensities: Tensor, binarisation: str) -> Tensor:
    """Binary pixels of the shape of `intensities`, the same at every call: by threshold, else one seeded draw.

    With "none", the values as they are.
    """
    if binarisation == "none":
        return intensities
    if binarisation == "threshold":
        return (intensities > 0.5).to(intensities.dtype)
    return draw_pixels(intensities, torch.Generator().manual_seed(BINARISATION_SEED))


def draw_pixels(intensities: Tensor, generator: torch.Generator) -> Tensor:
    """One Bernoulli draw of every pixel, of the shape of `intensities`."""
    return (torch.rand(intensities.shape, generator=generator) < intensities).to(intensities.dtype)
