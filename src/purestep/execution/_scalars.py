"""Keep scalar mathematics out of the loops over parameters.

Inductor inlines a pointwise producer into its consumers. On the CPU that puts a schedule's cosine and Adam's powers,
all 0-d float64, into the loop over every parameter: computed for each entry, by scalar library calls that keep the
loop from being vectorised. The pass here marks each 0-d value that a larger tensor reads, and inductor then stores it
once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass

torch.library.define("purestep::stored", "(Tensor x) -> Tensor")


@torch.library.impl("purestep::stored", "CompositeExplicitAutograd")
def _stored(x: Tensor) -> Tensor:
    return x.clone()


@torch.library.register_fake("purestep::stored")
def _stored_fake(x: Tensor) -> Tensor:
    return torch.empty_like(x)


# A constant is best where it is used, and what is stored already needs no second place.
_LEFT_ALONE = {
    torch.ops.aten.full.default,
    torch.ops.aten.scalar_tensor.default,
    torch.ops.purestep.stored.default,
}


class StoreScalars(CustomGraphPass):
    """A pass over inductor's graph, after the gradients are in it."""

    def __call__(self, graph: fx.Graph) -> None:
        _register_lowering()
        for node in list(graph.nodes):
            if node.op != "call_function" or node.target in _LEFT_ALONE or not _is_scalar(node):
                continue
            readers = [user for user in node.users if _is_larger(user)]
            if not readers:
                continue
            with graph.inserting_after(node):
                stored = graph.call_function(torch.ops.purestep.stored.default, (node,))
                stored.meta.update(node.meta)
            for reader in readers:
                reader.replace_input_with(node, stored)

    def uuid(self) -> Any:
        """The key of inductor's cache: a graph that this pass has seen is another graph."""
        return "purestep.StoreScalars.1"


def _is_scalar(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() == 0 and value.device.type == "cpu"


def _is_larger(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() > 0


def _register_lowering() -> None:
    from torch._inductor.lowering import lowerings, register_lowering

    if torch.ops.purestep.stored.default in lowerings:
        return

    @register_lowering(torch.ops.purestep.stored.default, type_promotion_kind=None)
    def lower(x: Any) -> Any:
        x.realize()
        return x
