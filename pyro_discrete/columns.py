"""Which rows of a particle belong to which site's coupled values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Columns"]


@dataclass
class Columns:
    """Which columns each site owns; column 0 is nobody's.

    - `owned`: site to its columns. Sites of a product own theirs together.
    - `products`: for a site of a product, the names of all of its sites.
    """

    owned: dict[str, list[int]] = field(default_factory=dict)
    count: int = 1
    products: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _rows: dict[str, list[int]] = field(default_factory=dict)

    def give(self, name: str, extra: int) -> None:
        """Append `extra` columns owned by the named site."""
        self.owned[name] = list(range(self.count, self.count + extra))
        self.count += extra

    def give_product(self, extra: Mapping[str, int]) -> None:
        """Append a column for each combination of these sites' rows 1 to `extra`."""
        joint, below = math.prod(extra.values()), 1
        columns = list(range(self.count, self.count + joint))
        for name, values in extra.items():
            self.owned[name], self.products[name] = columns, tuple(extra)
            self._rows[name] = [1 + i // below % values for i in range(joint)]
            below *= values
        self.count += joint

    def rows_of(self, name: str) -> list[int]:
        """Columns of the site's rows: column 0 and its own."""
        return [0, *self.owned.get(name, [])]

    def placed(self, name: str) -> dict[int, int]:
        """Each of the site's own columns, and the row of its draw that is there."""
        columns = self.owned.get(name, [])
        return dict(zip(columns, self._rows.get(name, range(1, len(columns) + 1)), strict=True))

    def together(self, members: Iterable[str], number: int) -> dict[str, int]:
        """The rows of a product's sites in its joint value of this number."""
        return {name: self._rows[name][number] for name in members}
