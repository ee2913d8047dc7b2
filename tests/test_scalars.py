"""The pass that keeps 0-d mathematics out of loops over parameters."""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from purestep.execution._scalars import StoreScalars


def update(parameter, step):
    rate = torch.cos(step.to(torch.float64)) * 0.1
    return parameter - rate * parameter, rate + 1


def traced():
    arguments = (torch.randn(5), torch.tensor(3))
    return make_fx(update, tracing_mode="fake")(*arguments), arguments


def stored(graph):
    return [node for node in graph.nodes if node.target == torch.ops.purestep.stored.default]


def test_a_scalar_that_a_larger_tensor_reads_is_stored_once():
    module, arguments = traced()
    StoreScalars()(module.graph)
    module.recompile()
    (node,) = stored(module.graph)
    readers = {user.meta["val"].dim() for user in node.users}
    assert readers == {1}, "the loop reads what is stored"
    (producer,) = node.args
    assert any(user.meta["val"].dim() == 0 for user in producer.users if user is not node), "scalars read it directly"
    for got, right in zip(module(*arguments), update(*arguments), strict=True):
        assert torch.equal(got, right)


def test_constants_and_large_tensors_are_left_where_they_are():
    def constant(x):
        return x * torch.full((), 2.0)

    module = make_fx(constant, tracing_mode="fake")(torch.randn(4))
    StoreScalars()(module.graph)
    assert not stored(module.graph)


def test_a_second_pass_over_the_same_graph_changes_nothing():
    module, _ = traced()
    StoreScalars()(module.graph)
    before = len(module.graph.nodes)
    StoreScalars()(module.graph)
    assert len(module.graph.nodes) == before


def test_the_cache_key_is_stable():
    assert StoreScalars().uuid() == StoreScalars().uuid()
