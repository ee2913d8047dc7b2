"""What a checkpoint raises beside ``TypeError``, ``ValueError`` and the system's own ``OSError``."""

from __future__ import annotations


class CheckpointError(ValueError):
    """What is on the disk is no whole checkpoint that this version reads: damaged, newer, or something else."""


class CheckpointLockedError(OSError):
    """Somebody else is writing there at this moment."""
