"""A state on disk: a folder with a manifest and the tensors, whole or not at all. No pickle is ever read."""

from purestep.checkpoint._errors import CheckpointError, CheckpointLockedError
from purestep.checkpoint._manifest import Manifest
from purestep.checkpoint._paths import check_target as check_target
from purestep.checkpoint.latest import latest
from purestep.checkpoint.manager import Manager
from purestep.checkpoint.reading import load, load_data, load_extra, load_metrics, read_manifest, verify
from purestep.checkpoint.weights import from_state_dict, load_into, load_weights, state_dict
from purestep.checkpoint.writing import save

__all__ = [
    "CheckpointError",
    "CheckpointLockedError",
    "Manager",
    "Manifest",
    "from_state_dict",
    "latest",
    "load",
    "load_data",
    "load_extra",
    "load_into",
    "load_metrics",
    "load_weights",
    "read_manifest",
    "save",
    "state_dict",
    "verify",
]
