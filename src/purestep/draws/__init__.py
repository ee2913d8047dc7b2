"""Random operations inside a module, drawn from a key instead of a global generator.

A :class:`Draws` mode stands around the forward and replaces each random operation by one that is a function of
``(key, calls, call site, index)``. A call site is the dotted name of the module that draws, the calls that led to it,
and an ordinal. In the dropout family the index is that of the example in the *whole* batch, where dimension 0 runs over
the examples, so cutting a batch into micro-batches changes no mask. What draws and is not known is refused by name: the
first eager run compares the global generators around each call, and a compiled graph is searched for random operations.
"""

from purestep.draws import _attention, _composites, _dropout, _fills, _recurrent, _rejection  # noqa: F401  (they register their rules)
from purestep.draws._mode import Draws, Place, Undrawn, current_draws
from purestep.draws._refusals import UnkeyedDrawError, unread_generators
from purestep.draws._sites import name_calls

__all__ = ["Draws", "Place", "Undrawn", "UnkeyedDrawError", "current_draws", "name_calls", "unread_generators"]
