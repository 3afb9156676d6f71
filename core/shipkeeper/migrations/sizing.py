"""How many rows a batch takes: grown and shrunk until one takes about the target duration."""

from typing import Final

from shipkeeper.resources.migrationjob import Batch
from shipkeeper.resources.schedule import milliseconds

# A batch may grow or shrink by so much at once: one slow batch must not undo what many have shown.
_MOST_GROWTH: Final = 2.0
_MOST_SHRINKAGE: Final = 0.5


class BatchSizer:
    """Adapts the size of batches, and halves it where a batch fails until the failing row stands alone."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._target = max(milliseconds(batch.target_duration), 1)
        self._size = batch.initial_size
        self._split: int | None = None

    @property
    def size(self) -> int:
        """Rows of the next batch."""
        return self._size if self._split is None else min(self._split, self._size)

    def succeeded(self, *, rows: int, took_milliseconds: int) -> None:
        """Learn from a committed batch."""
        if self._split is not None:
            self._split = self._split * 2 if self._split * 2 < self._size else None
            return
        if rows < self._size:
            return  # The last range of the table says little.
        factor = self._target / max(took_milliseconds, 1)
        wanted = round(self._size * min(max(factor, _MOST_SHRINKAGE), _MOST_GROWTH))
        self._size = min(max(wanted, self._batch.min_size), self._batch.max_size)

    def failed(self, *, rows: int) -> None:
        """Halve after a batch in which a row failed."""
        self._split = max(rows // 2, 1)
