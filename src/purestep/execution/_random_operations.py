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
        found = {_said(node) for node in graph.nodes if _is_random(node)}
        if found:
            self.error = UnkeyedDrawError(
                f"the step draws from a global generator by {', '.join(sorted(found))}, which purestep does not draw "
                "from the state's key: draw with purestep.random from context.key, the third argument of the objective"
            )
            raise self.error

    def uuid(self) -> Any:
        return b"purestep: no random operations, 1"


def _is_random(node: torch.fx.Node) -> bool:
    """Whether a node draws: attention and recurrent kernels carry the tag too, and draw only for their dropout."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    given = {
        argument.name: node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        for i, argument in enumerate(target._schema.arguments)
    }
    dropout = [given[name] for name in ("dropout_p", "dropout") if name in given]
    return not (dropout and (dropout[0] == 0 or given.get("train") is False))


def _said(node: torch.fx.Node) -> str:
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    places = [line for line in lines if line.startswith("File") and "purestep/draws" not in line]
    return str(node.target) + (f" ({places[-1]})" if places else "")
