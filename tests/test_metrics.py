"""Metrics merge exactly: any partition of a batch, in any order, with padding and empty parts, is the whole batch."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.metrics as sk
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from torch import nn

import purestep as ps
from purestep import laws, metrics
from purestep.fit import evaluate, fit
from purestep.objectives import Metric

CLASSES = 3


class Case(NamedTuple):
    """A metric of a batch, whether it pools without rounding, and what scikit-learn or NumPy says of the entries."""

    look: Callable[[dict[str, torch.Tensor]], Any]
    exact: bool
    reference: Callable[..., float]


def scored(function, average, **options):
    """A score of classes of ours beside that of scikit-learn."""
    zero = options.get("zero_division", 0.0)
    theirs = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}[function.__name__]

    def look(b):
        predicted = b["scores"].argmax(-1)
        return function(predicted, b["labels"], classes=CLASSES, average=average, where=b["mask"], **options)

    def reference(e):
        return theirs(e["labels"], e["predicted"], labels=range(CLASSES), average=average, zero_division=zero)

    return Case(look, True, reference)


def binary(function):
    theirs = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}[function.__name__]

    def look(b):
        predicted, actual = b["scores"].argmax(-1) == 1, b["labels"] == 1
        return function(predicted, actual, classes=2, average="binary", where=b["mask"])

    return Case(look, True, lambda e: theirs(e["labels"] == 1, e["predicted"] == 1, zero_division=0))


def calibration(e):
    """The definition, bin by bin."""
    error, confidence = 0.0, e["probabilities"].max(-1)
    for low, high in zip(np.arange(5) / 5, np.arange(1, 6) / 5, strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            hits = (e["predicted"] == e["labels"])[inside]
            error += abs(hits.mean() - confidence[inside].mean()) * inside.mean()
    return error


CASES = {
    "accuracy": Case(
        lambda b: metrics.accuracy(b["scores"], b["labels"], where=b["mask"]),
        True,
        lambda e: sk.accuracy_score(e["labels"], e["predicted"]),
    ),
    "top 2": Case(
        lambda b: metrics.top_k_accuracy(b["scores"], b["labels"], 2, where=b["mask"]),
        True,
        lambda e: sk.top_k_accuracy_score(e["labels"], e["scores"], k=2, labels=range(CLASSES)),
    ),
    "confusion": Case(
        lambda b: metrics.confusion(b["scores"].argmax(-1), b["labels"], classes=CLASSES, where=b["mask"]),
        True,
        lambda e: sk.accuracy_score(e["labels"], e["predicted"]),
    ),
    **{
        f"{function.__name__}, {average}": scored(function, average)
        for function in (metrics.precision, metrics.recall, metrics.f1)
        for average in ("macro", "micro", "weighted")
    },
    "f1, nothing is nan": scored(metrics.f1, "macro", zero_division=math.nan),
    "precision, nothing is 1": scored(metrics.precision, "weighted", zero_division=1.0),
    **{f"{f.__name__}, binary": binary(f) for f in (metrics.precision, metrics.recall, metrics.f1)},
    "calibration": Case(
        lambda b: metrics.calibration_error(b["scores"].softmax(-1), b["labels"], bins=5, where=b["mask"]),
        False,
        calibration,
    ),
    "perplexity": Case(
        lambda b: metrics.perplexity(b["values"], where=b["mask"]), False, lambda e: np.exp(np.mean(e["values"]))
    ),
    "root mean square": Case(
        lambda b: metrics.root_mean_square(b["values"], where=b["mask"]),
        False,
        lambda e: sk.root_mean_squared_error(e["values"], np.zeros_like(e["values"])),
    ),
    "r squared": Case(
        lambda b: metrics.r_squared(b["scores"][..., 0], b["values"], where=b["mask"]),
        False,
        lambda e: sk.r2_score(e["values"], e["scores"][:, 0], force_finite=False),
    ),
    "variance": Case(
        lambda b: metrics.variance(b["values"], where=b["mask"]), False, lambda e: np.var(e["values"], ddof=0)
    ),
    "sample variance": Case(
        lambda b: metrics.variance(b["values"], where=b["mask"], correction=1),
        False,
        lambda e: np.var(e["values"], ddof=1) if len(e["values"]) > 1 else np.nan,
    ),
    "deviation": Case(lambda b: metrics.deviation(b["values"], where=b["mask"]), False, lambda e: np.std(e["values"])),
    "maximum": Case(lambda b: metrics.maximum(b["values"], where=b["mask"]), True, lambda e: e["values"].max()),
    "minimum": Case(lambda b: metrics.minimum(b["values"], where=b["mask"]), True, lambda e: e["values"].min()),
    "total": Case(lambda b: metrics.total(b["values"], where=b["mask"]), False, lambda e: e["values"].sum()),
    "total of integers": Case(lambda b: metrics.total(b["labels"], where=b["mask"]), True, lambda e: e["labels"].sum()),
    "count": Case(lambda b: metrics.count(b["mask"]), True, lambda e: len(e["labels"])),
}


def look(batch) -> dict[str, Any]:
    return {name: case.look(batch) for name, case in CASES.items()}


def make(length: int, seed: int, *, tokens: int = 3, kept: float = 0.7) -> dict[str, torch.Tensor]:
    """A ragged batch in float64: what is left out holds what must not count."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(length, tokens, *shape, generator=generator, dtype=torch.float64)

    mask = torch.rand(length, tokens, generator=generator) < kept
    if length:
        mask[0, 0] = True  # a score over nothing is no number
    scores, values = draw(CLASSES), draw()
    labels = torch.where(mask, torch.randint(0, CLASSES, (length, tokens), generator=generator), -100)
    scores[~mask], values[~mask] = math.nan, math.inf
    return {"scores": scores, "values": values, "labels": labels, "mask": mask}


def entries(batch) -> dict[str, np.ndarray]:
    """What counts, as flat NumPy arrays."""
    found = {name: batch[name][batch["mask"]].numpy() for name in ("scores", "values", "labels")}
    return {
        **found,
        "predicted": found["scores"].argmax(-1),
        "probabilities": torch.from_numpy(found["scores"]).softmax(-1).numpy(),
    }


def parts_of(batch, lengths):
    pieces = [tensor.split(list(lengths)) for tensor in batch.values()]
    return [dict(zip(batch, piece, strict=True)) for piece in zip(*pieces, strict=True)]


def pool(pieces):
    return functools.reduce(ps.merge, pieces)


def differences(found, wanted, names=CASES) -> list[str]:
    """The metrics whose tensors differ: at all where they are exact, by more than 1e-12 where not."""
    wrong = []
    for name in names:
        for mine, theirs in zip(pytree.tree_leaves(found[name]), pytree.tree_leaves(wanted[name]), strict=True):
            same = torch.equal(mine, theirs) if CASES[name].exact else torch.allclose(mine, theirs, 1e-12, 1e-12)
            if not same or mine.dtype != theirs.dtype:
                wrong.append(name)
                break
    return wrong


@given(length=st.integers(1, 30), seed=st.integers(0, 10_000), kept=st.sampled_from([0.05, 0.7, 1.0]))
def test_values_are_those_of_scikit_learn_and_numpy(length, seed, kept):
    batch = make(length, seed, kept=kept)
    found, known = ps.values(look(batch)), entries(batch)
    for name, case in CASES.items():
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            wanted = float(case.reference(known))
        if name == "r squared" and len(known["values"]) == 1:
            assert not math.isfinite(found[name].item())
            continue
        assert found[name].item() == pytest.approx(wanted, rel=1e-12, abs=1e-12, nan_ok=True), name


@given(data=st.data(), length=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_any_partition_is_the_whole(data, length, seed):
    batch = make(length, seed)
    lengths = data.draw(laws.partitions(length))
    assert differences(pool([look(part) for part in parts_of(batch, lengths)]), look(batch)) == []


@given(lengths=st.tuples(*[st.integers(0, 4)] * 3), seed=st.integers(0, 10_000))
def test_merging_is_associative_and_commutative(lengths, seed):
    a, b, c = (look(make(length, seed + position)) for position, length in enumerate(lengths))
    assert differences(ps.merge(ps.merge(a, b), c), ps.merge(a, ps.merge(b, c))) == []
    assert differences(ps.merge(a, b), ps.merge(b, a)) == []


@given(length=st.integers(0, 4), seed=st.integers(0, 10_000))
def test_an_empty_batch_changes_no_bit(length, seed):
    batch, padding = look(make(length, seed)), make(2, seed)
    for nothing in (look(make(0, 0)), look({**padding, "mask": torch.zeros_like(padding["mask"])})):
        for merged in (ps.merge(batch, nothing), ps.merge(nothing, batch)):
            for mine, theirs in zip(pytree.tree_leaves(merged), pytree.tree_leaves(batch), strict=True):
                assert torch.equal(mine, theirs)


def test_over_nothing_a_mean_has_no_value_and_a_score_is_what_0_over_0_is():
    found = {name: value.item() for name, value in ps.values(look(make(0, 0))).items()}
    scores = [name for name in CASES if name.split(",")[0] in ("precision", "recall", "f1")]
    assert {found[name] for name in scores if "nothing" not in name} == {0}
    assert (found["precision, nothing is 1"], found["maximum"], found["minimum"]) == (1, -math.inf, math.inf)
    assert {found[name] for name in ("total", "total of integers", "count")} == {0}
    unknown = [
        *("accuracy", "top 2", "confusion", "f1, nothing is nan", "calibration", "perplexity", "root mean square"),
        *("r squared", "variance", "sample variance", "deviation"),
    ]
    assert all(math.isnan(found[name]) for name in unknown), found
    assert set(unknown) | set(scores) | {"maximum", "minimum", "total", "total of integers", "count"} == set(CASES)


def mean_of_values(pieces):
    return torch.stack([piece.value() for piece in pieces]).mean().item()


@pytest.mark.parametrize("name", ["f1, macro", "f1, micro", "perplexity", "variance", "deviation", "r squared"])
def test_a_mean_of_the_parts_values_is_caught(name):
    """The mutants: what averaging the values of parts says, and how far off that is."""
    batch = make(9, 3)
    pieces = [CASES[name].look(part) for part in parts_of(batch, (5, 3, 1))]
    right = CASES[name].look(batch).value().item()
    assert pool(pieces).value().item() == pytest.approx(right, rel=1e-12)
    assert mean_of_values(pieces) != pytest.approx(right, rel=1e-3)


def test_a_mutant_of_the_variance_that_forgets_the_distance_between_means_is_caught(monkeypatch):
    monkeypatch.setattr(metrics.Variance, "pool", metrics._pooling.Pooled.pool)
    pieces = [look(part) for part in parts_of(make(9, 3), (5, 3, 1))]
    assert differences(pool(pieces), look(make(9, 3))) == ["variance", "sample variance", "deviation"]


@given(data=st.data(), seed=st.integers(0, 10_000), far=st.sampled_from([1e3, 1e6, 1e8]))
def test_a_variance_far_from_zero_keeps_its_digits(data, seed, far):
    """Rounding of the values themselves to float64 is all that may be lost; sums of squares would lose everything."""
    near = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = near + far
    lengths = data.draw(laws.partitions(40))
    found = pool([metrics.variance(part) for part in values.split(list(lengths))]).value().item()
    bound = 40 * far * torch.finfo(torch.float64).eps  # of a spread of about 1
    assert found == pytest.approx(np.var((values - far).numpy()), rel=bound)
    if far == 1e8:
        squares = values.square().mean() - values.mean().square()
        assert squares.item() != pytest.approx(found, rel=bound)


def test_counts_are_exact_beyond_what_float32_counts():
    many = 2**24 + 1
    for metric in (
        metrics.count(torch.ones(many, dtype=torch.bool)),
        metrics.total(torch.ones(many, dtype=torch.bool)),
    ):
        assert metric.total.dtype == torch.int64
        assert metric.value().item() == many
    labels = torch.zeros(many, dtype=torch.bool)
    seen = metrics.confusion(labels, labels, classes=2)
    assert seen.counts.tolist() == [[many, 0], [0, 0]]
    one = metrics.confusion(torch.tensor([1]), torch.tensor([0]), classes=2)
    assert seen.merge(one).counts.tolist() == [[many, 1], [0, 0]]
    share = metrics.accuracy(torch.zeros(many, 1), torch.zeros(many, dtype=torch.int64))
    assert share.merge(share).total.item() == 2 * many
    assert torch.full((many,), True).to(torch.float32).sum().add(1).add(1).item() == 2**24  # what it would be


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_summed_in_float64(dtype):
    values = torch.full((3000,), 0.1).to(dtype)
    exact = 3000 * values[0].double().item()
    assert metrics.total(values).value().item() == pytest.approx(exact, rel=1e-12)
    assert metrics.perplexity(values).value().item() == pytest.approx(math.exp(exact / 3000), rel=1e-12)
    assert metrics.variance(values).value().item() == pytest.approx(0, abs=1e-15)
    assert metrics.maximum(values).value().item() == values[0].double().item()


def test_equal_scores_and_nan():
    scores = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, math.nan, 1], [math.nan, 1, 2], [-math.inf, -math.inf, 0]])
    labels = torch.tensor([0, 1, 1, 2, 1])
    assert metrics.accuracy(scores, labels).total.item() == 1
    found = [metrics.top_k_accuracy(scores, labels, k).total.item() for k in (1, 2, 3)]
    assert found == [1, 3, 4]  # a NaN is ahead of all, and is never right


def test_top_k_accuracy_is_the_share_among_the_k_highest():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(50, 10, generator=generator), torch.randint(0, 10, (50,), generator=generator)
    for k in range(1, 11):
        among = (scores.topk(k).indices == labels[:, None]).any(-1).sum().item()
        assert metrics.top_k_accuracy(scores, labels, k).total.item() == among
    assert metrics.accuracy(scores, labels).total == metrics.top_k_accuracy(scores, labels, 1).total


@given(seed=st.integers(0, 10_000), length=st.integers(1, 20))
def test_confusion_counts_and_their_scores_are_those_of_scikit_learn(seed, length):
    batch = make(length, seed)
    known = entries(batch)
    found = CASES["confusion"].look(batch)
    pair = (known["labels"], known["predicted"])
    assert found.counts.tolist() == sk.confusion_matrix(*pair, labels=range(CLASSES)).tolist()
    assert found.counts.dtype == torch.int64
    for average in ("macro", "micro", "weighted", None):
        for name, theirs in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
            wanted = theirs(*pair, labels=range(CLASSES), average=average, zero_division=1.0)
            ours = getattr(found, name)(average=average, zero_division=1.0).numpy()
            np.testing.assert_allclose(ours, wanted, rtol=1e-12, err_msg=f"{name}, {average}")
    assert found.precision(average=None).shape == (CLASSES,)
    two = metrics.confusion(torch.tensor([True, True, False]), torch.tensor([True, False, True]), classes=2)
    assert two.f1(average="binary").item() == 0.5


def test_perplexity_takes_the_loss_itself():
    batch = make(5, 0)
    loss = ps.mean(batch["values"], where=batch["mask"])
    assert float(metrics.perplexity(loss)) == pytest.approx(math.exp(float(loss)), rel=1e-14)
    assert metrics.perplexity(ps.mean(torch.ones(3))).total.dtype == torch.float64


def test_metrics_are_pytrees_and_metrics():
    for name, metric in look(make(4, 0)).items():
        assert isinstance(metric, Metric), name
        leaves, spec = pytree.tree_flatten(metric)
        again = pytree.tree_unflatten(leaves, spec)
        assert type(again) is type(metric)
        assert pytree.tree_structure(again) == spec
    nan = [metrics.f1(torch.tensor([0]), torch.tensor([0]), classes=2, average="macro", zero_division=float("nan"))]
    assert pytree.tree_structure(nan) == pytree.tree_structure(nan * 1)


@pytest.mark.parametrize("strides", ["rows", "broadcast mask"])
def test_vmapped_metrics_are_those_of_each_and_read_as_they_are(strides):
    batches = [make(4, seed) for seed in range(3)]
    stacked = {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}
    if strides == "broadcast mask":  # one mask for all: it is not batched, and the labels are
        stacked["mask"] = stacked["mask"].all(0)
        batches = [{**batch, "mask": stacked["mask"]} for batch in batches]
    dims = {name: None if name == "mask" and strides == "broadcast mask" else 0 for name in stacked}
    many = torch.vmap(look, in_dims=(dims,))(stacked)
    each = [look(batch) for batch in batches]
    for name in CASES:
        if dims["mask"] is None and name == "count":
            continue  # nothing of it is batched
        wanted = torch.stack([one[name].value() for one in each])
        torch.testing.assert_close(many[name].value(), wanted, rtol=1e-12, atol=1e-12, equal_nan=True)
        twice = many[name].merge(many[name]).value()
        pooled = torch.stack([one[name].merge(one[name]).value() for one in each])
        torch.testing.assert_close(twice, pooled, rtol=1e-12, atol=1e-12, equal_nan=True)


class Scorer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(CLASSES, CLASSES, dtype=torch.float64)

    def forward(self, scores):
        return self.layer(scores)


@pytest.fixture(scope="module")
def job():
    """A model whose objective reports every metric, and its state."""
    torch.manual_seed(0)
    model = Scorer()

    def objective(model, batch):
        scores = model(torch.where(batch["mask"][..., None], batch["scores"], 0.0))
        loss = ps.mean(scores.logsumexp(-1), where=batch["mask"])
        return loss, look({**batch, "scores": scores})

    optimizer = ps.sgd(0.1)
    return model, objective, optimizer, ps.init_state(model, optimizer, seed=0)


def test_they_pool_over_the_micro_batches_of_a_step(job):
    model, objective, optimizer, state = job
    batch = make(7, 5)
    _, whole = ps.train_step(model, objective, optimizer)(state, batch)
    for count in (2, 7):
        _, found = ps.train_step(model, objective, optimizer, accumulate=count)(state, batch)
        assert differences(found, whole) == []
        assert not any(leaf.requires_grad for leaf in pytree.tree_leaves(found))


def test_they_pool_over_the_batches_of_an_evaluation(job):
    model, objective, _, state = job
    batch = make(9, 6)
    step = ps.eval_step(model, objective)
    assert differences(evaluate(step, state, parts_of(batch, (4, 4, 1))), step(state, batch)) == []


def test_they_are_logged_by_the_loop(job):
    model, objective, _, state = job
    optimizer = ps.sgd(0.0)  # the same model at every step, so that a window is one batch
    state = ps.init_state(model, optimizer, seed=0).replace(params=state.params)
    batch, logged = make(9, 7), []
    fit(
        ps.train_step(model, objective, optimizer),
        state,
        parts_of(batch, (4, 4, 1)),
        steps=3,
        log_every=3,
        loggers=[lambda step, scalars: logged.append((step, scalars))],
        progress=False,
    )
    ((step, scalars),) = logged
    assert step == 3
    whole = ps.values(ps.eval_step(model, objective)(state, batch))
    for name in CASES:
        found = next(value for key, value in scalars.items() if key.split("/")[-1] == name)
        assert found == pytest.approx(whole[name].item(), rel=1e-12, abs=1e-12, nan_ok=True), name


@pytest.mark.compiler
def test_one_graph_computes_and_merges_each_kind_of_them():
    """One compilation, of two parts and their merging; averages of one score differ in how they are read only."""
    kinds = {type(metric): name for name, metric in look(make(2, 0)).items()}
    names = [*kinds.values(), "accuracy"]

    def both(first, second):
        return ps.merge(*({name: CASES[name].look(part) for name in names} for part in (first, second)))

    parts = parts_of(make(6, 8), (3, 3))
    found, wanted = torch.compile(both, fullgraph=True)(*parts), both(*parts)
    assert differences(found, wanted, names) == []
    assert {type(metric) for metric in found.values()} == set(kinds)


LABELS, SCORES = torch.tensor([0, 1, 2]), torch.zeros(3, 3)
BAD = [
    (lambda: metrics.accuracy([1.0], LABELS), TypeError, "scores must be a tensor, got [1.0] of type list"),
    (lambda: metrics.accuracy(torch.tensor(1.0), LABELS), ValueError, "scores is one number"),
    (lambda: metrics.accuracy(torch.zeros(3, 0), LABELS), ValueError, "scores must have classes in its last dim"),
    (lambda: metrics.accuracy(SCORES, LABELS.double()), TypeError, "labels must be class numbers (int64), got torch.f"),
    (lambda: metrics.accuracy(SCORES, LABELS[:2]), ValueError, "labels must have the shape (3,) of scores without its"),
    (lambda: metrics.accuracy(SCORES, LABELS + 1), ValueError, "labels must be class numbers from 0 to 2, got 3"),
    (lambda: metrics.accuracy(SCORES, LABELS, where=LABELS), TypeError, "where must be a bool tensor, got torch.int64"),
    (lambda: metrics.accuracy(SCORES, LABELS, where=[True]), TypeError, "where must be a tensor, got [True]"),
    (
        lambda: metrics.accuracy(SCORES, LABELS, where=torch.ones(2, dtype=torch.bool)),
        ValueError,
        "where must broadcast to the shape (3,) of labels, got shape (2,)",
    ),
    (lambda: metrics.top_k_accuracy(SCORES, LABELS, 4), ValueError, "k must be at most the number of classes"),
    (lambda: metrics.top_k_accuracy(SCORES, LABELS, 0), ValueError, "k must be an int of at least 1, got 0"),
    (lambda: metrics.confusion(SCORES, LABELS, classes=3), TypeError, "predicted must be class numbers (int64)"),
    (lambda: metrics.confusion(LABELS, LABELS, classes=1), ValueError, "classes must be an int of at least 2, got 1"),
    (lambda: metrics.confusion(LABELS, LABELS, classes=2), ValueError, "predicted must be class numbers from 0 to 1"),
    (lambda: metrics.confusion(LABELS, LABELS - 9, classes=3), ValueError, "labels must be class numbers from 0 to 2"),
    (
        lambda: metrics.f1(LABELS, LABELS, classes=3, average="binary"),
        ValueError,
        "average must be 'macro', 'micro' or 'weighted' with 3 classes",
    ),
    (
        lambda: metrics.f1(LABELS, LABELS, classes=3, average="marco"),
        ValueError,
        "average must be one of 'binary', 'macro', 'micro', 'weighted', got 'marco' (did you mean 'macro'",
    ),
    (lambda: metrics.f1(LABELS, LABELS, classes=3, average=None), ValueError, "average must be one of"),
    (lambda: metrics.f1(LABELS, LABELS, classes=3, average=["macro"]), ValueError, "average must be one of"),
    (
        lambda: metrics.recall(LABELS, LABELS, classes=3, average="macro", zero_division=2),
        ValueError,
        "zero_division must be a finite number at least 0 and at most 1, got 2",
    ),
    (lambda: metrics.calibration_error(SCORES + 5, LABELS), ValueError, "probabilities must be from 0 to 1, got a h"),
    (lambda: metrics.calibration_error(SCORES, LABELS, bins=0), ValueError, "bins must be an int of at least 1"),
    (lambda: metrics.perplexity(torch.tensor(2.0)), ValueError, "nats is one number"),
    (lambda: metrics.perplexity(3.0), TypeError, "nats must be a tensor, got 3.0"),
    (
        lambda: metrics.perplexity(ps.mean(torch.ones(2)), where=torch.ones(2) > 0),
        ValueError,
        "where cannot be given with a Mean",
    ),
    (lambda: metrics.variance(torch.tensor(2.0)), ValueError, "values is one number"),
    (lambda: metrics.variance(torch.ones(2), correction=-1), ValueError, "correction must be an int of at least 0"),
    (
        lambda: metrics.total(torch.ones(2, dtype=torch.complex64)),
        TypeError,
        "values must be real, got torch.complex64",
    ),
    (lambda: metrics.count(torch.ones(2)), TypeError, "where must be a bool tensor, got torch.float32"),
    (lambda: metrics.r_squared(torch.ones(2), torch.ones(3)), ValueError, "predicted must have the shape (3,) of targ"),
    (
        lambda: metrics.maximum(torch.ones(2)).merge(metrics.minimum(torch.ones(2))),
        TypeError,
        "other must be a Maximum to be merged with one, got Minimum",
    ),
    (
        lambda: metrics.variance(torch.ones(2)).merge(metrics.variance(torch.ones(2), correction=1)),
        ValueError,
        "metrics with another correction cannot be merged: 0 and 1",
    ),
    (
        lambda: metrics.confusion(LABELS, LABELS, classes=3).merge(metrics.confusion(LABELS, LABELS, classes=4)),
        ValueError,
        "metrics whose counts have shapes (3, 3) and (4, 4) cannot be merged",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_bad_input_names_the_argument_and_what_would_be_right(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_a_score_for_each_class_is_no_number_to_log():
    seen = metrics.confusion(LABELS, LABELS, classes=3)
    step = lambda state, batch: (state.replace(calls=state.calls + 1), {"f1": seen.f1(average=None)})  # noqa: E731
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"metric 'f1' must be one real number to be logged, got shape \(3,\)"):
        fit(step, ps.init_state(model, ps.sgd(0.1), seed=0), [torch.ones(1)], steps=1, log_every=1, progress=False)
