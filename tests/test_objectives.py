"""Sums and weights: what a mean is, how means combine, and what may not be one."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given

import purestep as ps
from purestep import laws
from purestep.objectives import Bare, Metric, read_outcome


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_mean_keeps_its_sum_and_its_count():
    mean = ps.mean(numbers(1, 2, 6))
    assert (mean.total.item(), mean.weight.item(), mean.value().item()) == (9, 3, 3)
    assert float(mean) == 3.0
    assert mean.total.shape == mean.weight.shape == ()


def test_all_entries_count_whatever_the_shape():
    mean = ps.mean(torch.ones(2, 3, 4))
    assert (mean.total.item(), mean.weight.item()) == (24, 24)
    empty = ps.mean(torch.ones(0, 3))
    assert (empty.total.item(), empty.weight.item()) == (0, 0)
    assert torch.isnan(empty.value())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.bfloat16])
def test_what_is_no_wide_float_is_summed_in_float32(dtype):
    mean = ps.mean(torch.ones(3000, dtype=dtype))
    assert mean.total.dtype == torch.float32
    assert mean.total.item() == 3000


def test_where_leaves_out_values_and_gradients_whatever_they_hold():
    values = numbers(1, float("nan"), float("inf"), 5).requires_grad_()
    mean = ps.mean(values, where=torch.tensor([True, False, False, True]))
    assert mean.value().item() == 3
    (gradient,) = torch.autograd.grad(mean.total, values)
    assert gradient.tolist() == [1, 0, 0, 1]


def test_where_broadcasts_and_counts_the_entries_it_keeps():
    mean = ps.mean(torch.arange(6.0).reshape(2, 3), where=torch.tensor([[True], [False]]))
    assert (mean.total.item(), mean.weight.item()) == (3, 3)


def test_a_weight_broadcasts_and_is_summed_as_often():
    mean = ps.mean(torch.ones(2, 3), weight=numbers(1, 2, 0))
    assert (mean.total.item(), mean.weight.item()) == (6, 6)
    both = ps.mean(numbers(1, 10, 100), weight=numbers(1, 2, 3), where=torch.tensor([True, True, False]))
    assert (both.total.item(), both.weight.item()) == (21, 3)


def test_a_weight_counts_with_integers_too():
    mean = ps.mean(numbers(1, 4), weight=torch.tensor([3, 1]))
    assert mean.value().item() == pytest.approx(7 / 4)


def test_a_factor_scales_the_value_and_not_the_weight():
    mean = ps.mean(numbers(1, 3))
    for scaled in (2 * mean, mean * 2, mean * torch.tensor(2.0), mean / 0.5):
        assert (scaled.value().item(), scaled.weight.item()) == (4, 2)
    assert (-mean).value().item() == -2


def test_a_sum_of_means_divides_each_term_by_its_own_weight():
    loss = ps.mean(numbers(1, 3)) + 10 * ps.mean(numbers(1, 2, 3))
    assert [term.weight.item() for term in loss.terms] == [2, 3]
    assert loss.value().item() == 22
    assert (loss - ps.mean(numbers(2, 4))).value().item() == 19
    assert len((loss + loss).terms) == 4
    assert float(-loss / 2) == -11


def test_merging_pools_terms_by_their_own_weights():
    first = ps.mean(numbers(1, 3)) + ps.mean(numbers(1))
    second = ps.mean(numbers(5)) + ps.mean(numbers(2, 3))
    merged = ps.merge(first, second)
    assert merged.value().item() == 9 / 3 + 6 / 3
    assert merged.value().item() != (first.value() + second.value()).item() / 2


@given(data=st.data(), length=st.integers(1, 12), seed=st.integers(0, 99))
def test_any_partition_of_values_has_the_whole_mean(data, length, seed):
    generator = torch.Generator().manual_seed(seed)
    values, weight = torch.rand(2, length, generator=generator, dtype=torch.float64)
    parts = data.draw(laws.partitions(length))
    pieces = [ps.mean(v, weight=w) for v, w in zip(values.split(parts), weight.split(parts), strict=True)]
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = ps.merge(whole, piece)
    assert whole.value().item() == pytest.approx(ps.mean(values, weight=weight).value().item(), rel=1e-13)


def test_metrics_merge_by_name_and_plain_tensors_keep_the_later():
    first = {"loss": ps.mean(numbers(1, 3)), "learning_rate": numbers(0.1)[0]}
    second = {"loss": ps.mean(numbers(5)), "learning_rate": numbers(0.2)[0]}
    merged = ps.merge(first, second)
    assert ps.values(merged)["loss"].item() == 3
    assert merged["learning_rate"].item() == 0.2
    assert list(ps.values(merged)) == ["loss", "learning_rate"]


class Largest:
    def __init__(self, largest):
        self.largest = largest

    def merge(self, other):
        return self if self.largest >= other.largest else other

    def value(self):
        return self.largest


def test_another_metric_needs_merge_value_and_to_be_taken_apart():
    first, second = Largest(numbers(1, 7).max()), Largest(numbers(3).max())
    with pytest.raises(TypeError, match="metric 'largest' is a Largest, which torch cannot take apart"):
        read_outcome((ps.mean(numbers(1)), {"largest": first}), bare=False)
    pytree.register_pytree_node(Largest, lambda m: ([m.largest], None), lambda children, _: Largest(*children))
    assert isinstance(first, Metric)
    _, metrics = read_outcome((ps.mean(numbers(1)), {"largest": first}), bare=False)
    merged = ps.merge(metrics, {"largest": second})
    assert ps.values(merged)["largest"].item() == 7


def test_means_and_losses_are_pytrees():
    loss = ps.mean(numbers(1, 3)) + ps.mean(numbers(1))
    leaves, spec = pytree.tree_flatten(loss)
    assert [leaf.item() for leaf in leaves] == [4, 2, 1, 1]
    again = pytree.tree_unflatten([leaf * 2 for leaf in leaves], spec)
    assert isinstance(again, ps.Loss)
    assert again.terms[0].total.item() == 8
    stacked = torch.vmap(lambda values: ps.mean(values))(torch.arange(6.0).reshape(2, 3))
    assert stacked.value().tolist() == [1, 4]


def test_a_bare_tensor_is_a_loss_of_its_own_kind():
    loss, metrics = read_outcome(numbers(2.5)[0], bare=True)
    assert isinstance(loss, Bare)
    assert loss.value().item() == 2.5
    assert metrics == {}
    with pytest.raises(TypeError, match="whose denominator nobody knows"):
        loss.merge(loss)
    with pytest.raises(TypeError, match="cannot be merged"):
        ps.merge(loss, loss)


BAD = {
    "values no tensor": (lambda: ps.mean([1.0, 2.0]), TypeError, "values must be a tensor, got [1.0, 2.0]"),
    "where of floats": (
        lambda: ps.mean(numbers(1, 2), where=numbers(1, 0)),
        TypeError,
        "where must be a bool tensor, got torch.float64",
    ),
    "where of another shape": (
        lambda: ps.mean(numbers(1, 2), where=torch.ones(3, dtype=torch.bool)),
        ValueError,
        "where must broadcast to the shape of values (2,), got shape (3,)",
    ),
    "where with more dimensions": (
        lambda: ps.mean(numbers(1, 2), where=torch.ones(2, 2, dtype=torch.bool)),
        ValueError,
        "where must broadcast",
    ),
    "weight a number": (lambda: ps.mean(numbers(1, 2), weight=2.0), TypeError, "weight must be a tensor, got 2.0"),
    "weight nan": (
        lambda: ps.mean(numbers(1, 2), weight=numbers(1, float("nan"))),
        ValueError,
        "weight must be finite and at least 0, got nan",
    ),
    "weight negative": (lambda: ps.mean(numbers(1, 2), weight=numbers(1, -2)), ValueError, "got -2.0"),
    "weight of parameters": (
        lambda: ps.mean(numbers(1, 2), weight=numbers(1, 2).requires_grad_()),
        ValueError,
        "weight depends on the parameters",
    ),
    "mean and number": (lambda: ps.mean(numbers(1)) + 1.0, TypeError, "adds only to a Mean or Loss, got float"),
    "merge unlike": (
        lambda: ps.merge(ps.mean(numbers(1)) + ps.mean(numbers(1)), ps.mean(numbers(1))),
        ValueError,
        "need equally many, got 2 and 1",
    ),
    "merge names": (
        lambda: ps.merge({"a": numbers(1)}, {"b": numbers(1)}),
        ValueError,
        "the same names to be merged, got ['a'] and ['b']",
    ),
    "merge a number": (lambda: ps.merge(1.0, 2.0), TypeError, "got float"),
    "outcome a number": (lambda: read_outcome(1.0, bare=True), TypeError, "must return ps.mean(values)"),
    "outcome a vector": (lambda: read_outcome(numbers(1, 2), bare=True), ValueError, "scalar loss, got a tensor of"),
    "outcome bare": (lambda: read_outcome(numbers(1)[0], bare=False), TypeError, "return ps.mean(values)"),
    "metrics a list": (lambda: read_outcome((ps.mean(numbers(1)), [1]), bare=True), TypeError, "list as metrics"),
    "a metric named loss": (
        lambda: read_outcome((ps.mean(numbers(1)), {"loss": ps.mean(numbers(1))}), bare=True),
        ValueError,
        'named "loss"',
    ),
    "a metric that is a number": (
        lambda: read_outcome((ps.mean(numbers(1)), {"a": 1.0}), bare=True),
        TypeError,
        "metric 'a' must be ps.mean(values)",
    ),
    "a bare metric with accumulation": (
        lambda: read_outcome((ps.mean(numbers(1)), {"a": numbers(1)[0]}), bare=False),
        TypeError,
        "metric 'a' is a bare tensor",
    ),
    "a total with dimensions": (
        lambda: read_outcome(ps.Mean(numbers(1, 2), numbers(1)[0]), bare=True),
        ValueError,
        "the total of a Mean must be a 0-d tensor (a sum over examples), got shape (2,)",
    ),
    "a weight that is nan": (
        lambda: read_outcome(ps.Mean(numbers(1)[0], numbers(float("nan"))[0]), bare=True),
        ValueError,
        "weight of a Mean must be a number, got nan",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    call, error, message = BAD[name]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_a_loss_that_was_reduced_before_is_refused_and_once_counts_a_penalty_once():
    with pytest.raises(ValueError, match=r"values is one number.*before they are reduced.*ps.once"):
        ps.mean(numbers(1, 2).mean())
    penalty = ps.merge(ps.once(numbers(3).sum()), ps.once(numbers(3).sum()))
    assert penalty.value().item() == 3
    with pytest.raises(ValueError, match="amount must be a 0-d tensor"):
        ps.once(numbers(1, 2))


def test_means_are_summed_by_sum_and_not_multiplied():
    loss = sum([ps.mean(numbers(1, 3)), ps.mean(numbers(4))])
    assert loss.value().item() == 6
    with pytest.raises(TypeError, match="a product of two is no sum over examples"):
        ps.mean(numbers(1)) * ps.mean(numbers(2))
    with pytest.raises(TypeError, match=r"adds only to a Mean or Loss.*ps.once"):
        0.5 + ps.mean(numbers(1))
