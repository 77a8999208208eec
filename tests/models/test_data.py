"""Data sets, idx files and binarisation: what they hold, and one clear error for whatever can be wrong with them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch

from models.data import images as image_files
from models.data.catalogue import BatchStream, load_images
from models.data.images import FASHION_MNIST_FILES, Images, binarise_once, load_digits, read_idx_images
from models.errors import ConfigError, DataError

HEIGHT, WIDTH = 3, 2


def idx_bytes(number: int, magic: int = 2051) -> bytes:
    pixels = bytes(255 * (i % 2) for i in range(number * HEIGHT * WIDTH))
    return struct.pack(">4I", magic, number, HEIGHT, WIDTH) + pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with Fashion-MNIST's files, tiny: the training images gzipped, the test images not."""
    (tmp_path / f"{FASHION_MNIST_FILES['train']}.gz").write_bytes(gzip.compress(idx_bytes(5)))
    (tmp_path / FASHION_MNIST_FILES["test"]).write_bytes(idx_bytes(4))
    return tmp_path


def test_digits_have_a_fixed_split() -> None:
    first, second = load_digits(), load_digits()
    assert first.train.shape == (1500, 64)
    assert first.test.shape == (297, 64)
    assert first.train.min() == 0
    assert first.train.max() == 1
    assert torch.equal(first.test, second.test)
    assert first.fingerprint == second.fingerprint


def test_fashion_mnist_from_a_named_folder(folder: Path) -> None:
    images = load_images("fashion-mnist", folder)
    assert images.train.shape == (5, 6)
    assert images.test.shape == (4, 6)
    assert images.shape == (3, 2)
    assert images.train[0].tolist() == [0, 1, 0, 1, 0, 1]


def test_fashion_mnist_where_the_package_puts_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "PACKAGE_FOLDERS", (folder / "elsewhere", folder))
    assert len(load_images("fashion-mnist").train) == 5


@pytest.mark.skipif(
    not image_files.PACKAGE_FOLDERS[0].is_dir(), reason="the Debian package dataset-fashion-mnist is absent"
)
def test_the_real_fashion_mnist() -> None:
    images = load_images("fashion-mnist")
    assert images.train.shape == (60000, 784)
    assert images.test.shape == (10000, 784)
    assert images.shape == (28, 28)
    assert images.train.mean().item() == pytest.approx(0.286, abs=5e-4)


def test_fashion_mnist_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "PACKAGE_FOLDERS", (tmp_path / "absent",))
    with pytest.raises(DataError, match=r"apt-get install dataset-fashion-mnist.*--data-dir"):
        load_images("fashion-mnist")


def test_unknown_data_set() -> None:
    with pytest.raises(DataError, match=r"Unknown data set 'digit'\. Did you mean 'digits'\?"):
        load_images("digit")


def test_folder_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data folder .*absent is not there"):
        load_images("fashion-mnist", tmp_path / "absent")


def test_file_missing(folder: Path) -> None:
    (folder / FASHION_MNIST_FILES["test"]).unlink()
    with pytest.raises(DataError, match=r"holds neither t10k-images-idx3-ubyte\.gz nor t10k-images-idx3-ubyte\."):
        load_images("fashion-mnist", folder)


def test_digits_are_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leave out --data-dir"):
        load_images("digits", tmp_path)


def test_sizes_of_train_and_test_differ(folder: Path) -> None:
    (folder / FASHION_MNIST_FILES["test"]).write_bytes(struct.pack(">4I", 2051, 1, 2, 2) + bytes(4))
    with pytest.raises(DataError, match="differ in size"):
        load_images("fashion-mnist", folder)


@pytest.mark.parametrize("gzipped", [False, True])
def test_truncated_idx_file_names_file_and_bytes(tmp_path: Path, gzipped: bool) -> None:
    path = tmp_path / ("images.gz" if gzipped else "images")
    path.write_bytes(gzip.compress(idx_bytes(5)[:-7]) if gzipped else idx_bytes(5)[:-7])
    with pytest.raises(DataError, match=r"images.* is truncated: expected 46 bytes, found 39"):
        read_idx_images(path)


def test_truncated_archive(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = bytes(torch.randint(256, (1000 * HEIGHT * WIDTH,), generator=generator, dtype=torch.uint8).tolist())
    whole = gzip.compress(struct.pack(">4I", 2051, 1000, HEIGHT, WIDTH) + noise)
    (tmp_path / "images.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"images\.gz is truncated: expected 6016 bytes, found [1-5]\d\d\d;"):
        read_idx_images(tmp_path / "images.gz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_bytes(1)[:9], "header has 16 bytes, found 9"),
        (idx_bytes(1, magic=2049), "magic number is 2049, expected 2051"),
        (idx_bytes(1) + b"more", "longer than its header says: expected 22 bytes, found 26"),
    ],
)
def test_damaged_idx_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx_images(tmp_path / "images")


def test_no_gzip_file(tmp_path: Path) -> None:
    (tmp_path / "images.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"images\.gz is not a sound gzip file"):
        read_idx_images(tmp_path / "images.gz")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (torch.tensor([[0.0, float("nan")]]), "1 values that are NaN or infinite"),
        (torch.tensor([[0.0, 255.0]]), r"values from 0 to 255; scale intensities to \[0, 1\]"),
        (torch.empty(0, 2), "train images of 'own' are empty"),
        (torch.zeros(1, 3), r"have shape \[1, 3\]; expected \[number, 2\]"),
    ],
)
def test_images_that_are_none(train: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Images("own", train, torch.zeros(1, 2), (1, 2), "made by the test")


def test_binarisations() -> None:
    grey = torch.linspace(0, 1, 4000).view(40, 100)
    static = binarise_once(grey, "static")
    assert torch.equal(static, binarise_once(grey, "static"))
    assert set(static.unique().tolist()) == {0.0, 1.0}
    assert static.mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(binarise_once(grey, "threshold"), (grey > 0.5).float())


def test_dynamic_batches_are_drawn_anew_and_static_ones_are_not() -> None:
    grey = torch.full((4, 50), 0.5)
    for binarisation, same in (("dynamic", False), ("static", True)):
        stream = BatchStream(grey, 4, binarisation, seed=0)
        epochs = [stream.next_batch().sort(0).values for _ in range(2)]
        assert torch.equal(epochs[0].sum(0), epochs[1].sum(0)) is same


def test_an_epoch_holds_every_image_once_with_a_ragged_last_batch() -> None:
    images = torch.eye(7)
    stream = BatchStream(images, 3, "threshold", seed=0)
    batches = [stream.next_batch() for _ in range(3)]
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat(batches).sum(0), torch.ones(7))


def test_a_stream_goes_on_from_its_state() -> None:
    grey = torch.full((10, 20), 0.5)
    stream = BatchStream(grey, 4, "dynamic", seed=3)
    stream.next_batch()
    state = stream.state_dict()
    expected = [stream.next_batch() for _ in range(5)]
    other = BatchStream(grey, 4, "dynamic", seed=99)
    other.load_state_dict(state)
    for batch in expected:
        assert torch.equal(batch, other.next_batch())


def test_bad_streams() -> None:
    with pytest.raises(ConfigError, match=r"batch size is 11; expected 1 to 10"):
        BatchStream(torch.zeros(10, 2), 11, "static", seed=0)
    with pytest.raises(ConfigError, match=r"batch size is 0"):
        BatchStream(torch.zeros(10, 2), 0, "static", seed=0)
    with pytest.raises(ConfigError, match=r"Unknown binarisation 'statics'. Did you mean 'static'"):
        BatchStream(torch.zeros(10, 2), 1, "statics", seed=0)
    with pytest.raises(DataError, match="no images"):
        BatchStream(torch.zeros(0, 2), 1, "static", seed=0)
