"""What `python -m models list` shows is what there is; this file as a script (`make generated`) renews it."""

from __future__ import annotations

import json

import pytest

from models.cli.choices import CHOICES
from models.reports.tables import choices


def written() -> str:
    return json.dumps(choices(), indent=1, ensure_ascii=False) + "\n"


@pytest.mark.slow
def test_the_file_behind_list_is_current() -> None:
    assert written() == CHOICES.read_text(encoding="utf-8"), "run `make generated`"


if __name__ == "__main__":
    CHOICES.write_text(written(), encoding="utf-8")
