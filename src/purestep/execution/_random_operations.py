"""A search of a compiled graph for random operations: they would draw from a global generator."""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph

from purestep.draws import UnkeyedDrawError


class RefuseRandomOperations(CustomGraphPass):
    """Raise where a graph, before inductor rewrites it, has an operation tagged ``nondeterministic_seeded``.

    Attributes:
        error: what was raised. (The compiler wraps what passes raise.)
    """

    def __init__(self) -> None:
        self.error: UnkeyedDrawError | None = None

    def __call__(self, graph: Graph) -> None:
        found = {_said(node) for node in graph.nodes if _is_random(node.target)}
        if found:
            self.error = UnkeyedDrawError(
                f"the step draws from a global generator by {', '.join(sorted(found))}, which purestep does not draw "
                "from the state's key: draw with purestep.random from context.key, the third argument of the objective"
            )
            raise self.error

    def uuid(self) -> Any:
        return b"purestep: no random operations, 1"


def _is_random(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def _said(node: torch.fx.Node) -> str:
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("File") and "purestep/draws" not in line]
    return str(node.target) + (f" ({places[-1]})" if places else "")
