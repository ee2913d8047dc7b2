"""Scalars of a run, for TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


class TensorBoardLogger:
    """A logger for :func:`purestep.fit` that writes event files into a folder.

    Each scalar becomes a TensorBoard tag of its own name: ``loss``, ``learning_rate``, ``val/accuracy``. :func:`fit`
    closes it at its end; a logger that was closed begins a new event file at its next call, so one logger can serve
    several runs that follow each other. Outside of ``fit`` it is a context manager::

        with TensorBoardLogger("runs/1") as log:
            log(10, {"loss": 0.25})

    Args:
        log_dir: the folder, made where it is missing; ``tensorboard --logdir`` is given it or a folder above it.

    Raises:
        ImportError: tensorboard is not installed.
        TypeError: ``log_dir`` is no path.
    """

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        if not isinstance(log_dir, (str, os.PathLike)):
            raise TypeError(f"log_dir must be the name of a folder, got {log_dir!r} of type {type(log_dir).__name__}")
        self.log_dir = os.fspath(log_dir)
        self._writer: Any = self._opened()

    def _opened(self) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoardLogger needs tensorboard, which is not installed: pip install 'purestep[tensorboard]'"
            ) from error
        return SummaryWriter(self.log_dir)

    def __call__(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write each scalar at ``step``."""
        if self._writer is None:
            self._writer = self._opened()
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, global_step=step)

    def close(self) -> None:
        """Write out what is buffered, and close the event file. Closing twice does nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> TensorBoardLogger:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
