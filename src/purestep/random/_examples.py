"""Where the examples of a batch run in what a module draws."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch.overrides import _get_current_function_mode_stack

# What a mode that draws takes where nothing is said: it goes by the shape of each draw.
BY_SHAPE = "by shape"


class examples:  # noqa: N801  (a context manager, named as it is read)
    """Within this block, the examples of a batch run over dimension ``dim`` of everything that a step draws.

    A step that is cut into micro-batches draws for each example what it would draw in the whole batch. It knows by the
    shape of a draw which dimension runs over the examples, where that is the first. Say so where it is another, as in
    layers that take ``(length, batch, channels)``, or none::

        def forward(self, x):                         # x: (length, batch, channels)
            with ps.random.examples(dim=1):
                return self.dropout(x)

    Outside a step it does nothing.

    Args:
        dim: the dimension, whose length is a multiple of the number of examples; negative ones count from the end.
            ``None``: the draws are shared by the micro-batches.

    Raises:
        TypeError: ``dim`` is neither an int nor ``None``.
        ValueError: at a draw that has no such dimension, or one of another length.
    """

    def __init__(self, *, dim: int | None) -> None:
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int)):
            raise TypeError(f"dim must be an int or None, got {dim!r} of type {type(dim).__name__}")
        self._dim = dim
        # One list for each block under way: the same object may be entered within itself.
        self._before: list[list[tuple[Any, Any]]] = []

    def __enter__(self) -> None:
        modes = [mode for mode in _get_current_function_mode_stack() if hasattr(mode, "examples_dim")]
        self._before.append([(mode, mode.examples_dim) for mode in modes])
        for mode in modes:
            mode.examples_dim = self._dim

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode, before in self._before.pop():
            mode.examples_dim = before
