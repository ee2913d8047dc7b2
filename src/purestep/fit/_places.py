"""The batches of a run one after another, and the place of those that were used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

END: Any = object()


class Feed:
    """Batches one after another, and with ``keeps`` their ``place``, which whoever uses them sets to ``here()``.

    A batch that was fetched and not used must not be behind the place that is saved: its step may have failed, or a
    signal may have come while it was handed over. So the place is asked for after each step, and not for each save.
    """

    def __init__(self, batches: Iterable[Any], *, keeps: bool) -> None:
        self.batches: Any = batches
        self._keeps, self._fetched = keeps, 0
        self._iterator: Iterator[Any] | None = None
        self.place: dict[str, Any] | None = self.here()

    @property
    def knows_its_place(self) -> bool:
        """Whether batches can be taken up where they were left."""
        return _is_list(self.batches) or _has_state(self.batches)

    def go_to(self, place: Any) -> None:
        """Go on after the batches that were used.

        Raises:
            TypeError, ValueError: batches that cannot, or that the place is not of.
        """
        batches = self.batches
        if _is_list(batches):
            self._fetched = _used(place, batches)
        elif not _has_state(batches):
            raise TypeError(
                "batches must be able to go on where they were left, having state_dict() and load_state_dict(...), as "
                "ps.data.pipeline and ps.data.loader make them, or be a list, for the checkpoint holds the place of "
                f"such batches; got a {type(batches).__name__}"
            )
        else:
            batches.load_state_dict(place)
        self.place = self.here()

    def fetch(self) -> Any:
        """Return the next batch, or ``END``."""
        if self._iterator is None:
            batches = self.batches
            self._iterator = iter(batches[self._fetched :] if _is_list(batches) else batches)
        batch = next(self._iterator, END)
        self._fetched += 1
        return batch

    def here(self) -> dict[str, Any] | None:
        """Return the place after the batch that was fetched last; ``None`` where there is none, or nobody asks."""
        if not self._keeps:
            return None
        if _is_list(self.batches):
            return {"batches": self._fetched}
        return self.batches.state_dict() if _has_state(self.batches) else None


def _is_list(batches: Any) -> bool:
    return isinstance(batches, (list, tuple))


def _has_state(batches: Any) -> bool:
    return all(callable(getattr(batches, name, None)) for name in ("state_dict", "load_state_dict"))


def _used(place: Any, batches: Sequence[Any]) -> int:
    used = place.get("batches") if isinstance(place, dict) else None
    if type(used) is not int or used < 0:
        raise ValueError(f"batches must be those of the run that is resumed, whose place is {place!r}, got a list")
    if len(batches) < used:
        raise ValueError(
            f"batches must be the list of the run that is resumed, which used {used} of them, got one of {len(batches)}"
        )
    return used
