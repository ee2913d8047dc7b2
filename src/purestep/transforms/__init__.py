"""Gradient transformations: maps from gradients to gradients."""

from purestep.transforms.clipping import clip_by_global_norm as clip_by_global_norm
from purestep.transforms.clipping import global_norm as global_norm
