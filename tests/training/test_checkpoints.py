"""What may happen to a checkpoint's file: bits that change, ends that are cut off, disks that are full."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_discrete.checkpoints import load_checkpoint, save_checkpoint, write_atomically
from pyro_discrete.errors import CheckpointError, SettingError, WriteError
from tests.support.earlier_states import FILES
from tests.support.training_pairs import assert_same, loader, run

STATE: dict[str, Any] = {"numbers": torch.linspace(0.0, 1.0, 300), "name": "a run", "steps": [1, 2]}


def flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def test_a_flipped_bit_is_found_anywhere(tmp_path: Path) -> None:
    """Every 37th bit of the file: headers, numbers, padding, the sum itself."""
    path = tmp_path / "c.pt"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 37):
        path.write_bytes(flipped(whole, place))
        with pytest.raises(CheckpointError, match=r"c\.pt is damaged"):
            load_checkpoint(path)


def test_a_cut_end_is_found(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, STATE)
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 86, len(whole) - 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
            load_checkpoint(path)


def test_a_flipped_bit_of_an_earlier_version_is_found_or_changes_nothing(tmp_path: Path) -> None:
    """Its archive has a sum of each part, and none of the space between them."""
    path = tmp_path / "c.pt"
    whole = (FILES / "fit_checkpoint.pt").read_bytes()
    expected = torch.load(FILES / "fit_checkpoint.pt", weights_only=True)
    found = 0
    for place in range(5, 8 * len(whole), 8 * len(whole) // 150):
        path.write_bytes(flipped(whole, place))
        try:
            assert_same(load_checkpoint(path), expected)
        except CheckpointError:
            found += 1
    assert found > 50


@pytest.mark.parametrize("content", [b"a text file\n", b"cos\nsystem\n", pickle.dumps({"format": 2}), b"PK\x03\x04abc"])
def test_other_files_are_no_checkpoints(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"c\.pt is damaged or no checkpoint"):
        load_checkpoint(tmp_path / "c.pt")


def test_nothing_but_data_is_read(tmp_path: Path) -> None:
    torch.save({"format": 2, "path": tmp_path}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(tmp_path / "c.pt")


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from pyro_discrete.checkpoints import save_checkpoint, write_atomically
from pyro_discrete.errors import WriteError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
for old in (None, b"what was there"):
    if old:
        path.write_bytes(old)
    for room in (0, 100, 12000):
        for write in (
            lambda: save_checkpoint(path, {"x": torch.ones(3000)}),
            lambda: write_atomically(path, "x" * 20000),
        ):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, -1))
            try:
                write()
            except WriteError as error:
                assert "c.pt could not be written (File too large)" in str(error), error
                assert ("stays as it was" in str(error)) == bool(old), error
                assert [p.name for p in path.parent.iterdir()] == (["c.pt"] if old else [])
                assert old is None or path.read_bytes() == old
            else:
                raise AssertionError("it was written")
            resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
print("all as it should be")
"""


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "c.pt")], capture_output=True, text=True)
    assert done.stdout.strip() == "all as it should be", done.stdout + done.stderr


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "c.pt", tmp_path / "file" / "below" / "c.pt"):
        with pytest.raises(WriteError, match=r"c\.pt could not be written"):
            save_checkpoint(path, STATE)
        with pytest.raises(WriteError, match=r"c\.pt could not be written"):
            write_atomically(path, "text")
    with pytest.raises(WriteError, match=r"run\.pt could not be written"):
        run(steps=3, checkpoint=tmp_path / "file" / "run.pt")
    run(steps=3, checkpoint=tmp_path / "made" / "by fit" / "run.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(WriteError, match="could not be written"):
        save_checkpoint(tmp_path / "folder.pt", STATE)
    assert not list(tmp_path.glob("*.part"))


def test_a_save_that_is_broken_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise KeyboardInterrupt

    save_checkpoint(tmp_path / "c.pt", STATE)
    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "c.pt", {})
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]
    assert_same({"format": 3, **STATE}, load_checkpoint(tmp_path / "c.pt"))


def test_numbers_of_numpy_are_saved_as_pythons(tmp_path: Path) -> None:
    run(steps=3, lr=np.float64(0.01), checkpoint=tmp_path / "run.pt", metadata={"n": [np.int64(3)]})
    saved = load_checkpoint(tmp_path / "run.pt")
    assert type(saved["metadata"]["n"][0]) is int
    assert run(steps=5, lr=np.float64(0.01), checkpoint=tmp_path / "run.pt", resume=True).step == 5


@pytest.mark.parametrize("value", [Path("here"), np.zeros(3), lambda: None, object()])
def test_what_could_not_be_read_again_is_not_saved(value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"metadata\['a'\]\[1\] is .* cannot hold"):
        run(steps=3, checkpoint=tmp_path / "run.pt", metadata={"a": [1, value]})
    assert not list(tmp_path.iterdir())


OTHER_RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "optimiser": ({"optimizer": "sgd"}, "another optimiser.*SGD"),
    "groups": ({"rates": {"pair.decoder.*": 0.1}}, "1 groups of parameters then, 2 now"),
    "scheduler": ({"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 3)}, "made without a scheduler"),
    "callbacks": ({"callbacks": [print]}, "made with 0 callbacks, this run has 1"),
    "data": ({"data": lambda: loader(None)}, "place in the data in the checkpoint does not fit"),
    "estimator": ({"elbo": "reinforce"}, "parameters differ"),
}


@pytest.mark.parametrize("case", OTHER_RUNS)
def test_another_run_is_refused_by_name(case: str, tmp_path: Path) -> None:
    settings, words = OTHER_RUNS[case]
    run(steps=3, checkpoint=tmp_path / "run.pt")
    settings = {name: value() if name == "data" else value for name, value in settings.items()}
    with pytest.raises(CheckpointError, match=words):
        run(steps=6, checkpoint=tmp_path / "run.pt", resume=True, **settings)


def test_a_checkpoint_of_something_else_and_one_that_is_ahead(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other.pt", STATE)
    with pytest.raises(CheckpointError, match="none of fit's: it has no 'step'"):
        run(steps=6, checkpoint=tmp_path / "other.pt", resume=True)
    run(steps=6, checkpoint=tmp_path / "run.pt")
    for resume in (True, "auto"):
        with pytest.raises(SettingError, match=r"run\.pt is at step 6 already, .* end at step 4"):
            run(steps=4, checkpoint=tmp_path / "run.pt", resume=resume)
    assert run(steps=6, checkpoint=tmp_path / "run.pt", resume=True).step == 6
