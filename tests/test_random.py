"""Random numbers as functions of a key: the published vectors, the distributions, and no generator touched."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

import purestep as ps
from purestep import random
from purestep.laws._world import guarded_world
from purestep.random import _eager, _philox, _stream, distributions
from purestep.random._philox import philox
from purestep.random.words import at_least

COUNT = 1 << 16


def words(*values):
    return [torch.tensor([value], dtype=torch.int64) for value in values]


# The known answers of Random123 (kat_vectors, philox4x32 with 10 rounds): counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_philox_has_the_published_answers(counter, key, result):
    c0, c1, c2, purpose = counter
    got = philox(*words(*key), *words(c0, c1, c2), purpose)
    assert [word.item() for word in got] == list(result)


def test_the_words_of_a_key_are_philoxs():
    assert random.bits(random.key(0), (4,)).tolist() == list(KNOWN[0][2])


def test_a_key_is_two_words_of_its_seed():
    assert random.key(5).tolist() == [5, 0]
    assert random.key((7 << 32) + 3).tolist() == [3, 7]
    assert random.key(2**64 - 1).tolist() == [0xFFFFFFFF, 0xFFFFFFFF]


def test_the_same_key_gives_the_same_bits_and_another_gives_others():
    key = random.key(1)
    assert torch.equal(random.bits(key, (3, 5)), random.bits(key, (15,)).reshape(3, 5))
    assert not torch.equal(random.bits(key, (8,)), random.bits(random.key(2), (8,)))


def test_a_longer_stream_begins_like_a_shorter_one_and_can_be_entered_anywhere():
    key = random.key(1)
    long = random.bits(key, (101,))
    assert torch.equal(random.bits(key, (10,)), long[:10])
    for start in (0, 1, 4, 7, 50):
        assert torch.equal(random.bits(key, (20,), start=start), long[start : start + 20])
        assert torch.equal(random.uniform(key, (3, 5), start=start).flatten(), random.uniform(key, (101,))[start:][:15])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (5, 0, 2)])
def test_shapes(shape):
    key = random.key(0)
    assert random.bits(key, shape).shape == shape
    assert random.uniform(key, shape).shape == shape
    assert random.normal(key, shape).shape == shape
    assert random.bernoulli(key, 0.5, shape).shape == shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    assert random.uniform(random.key(0), (3,), dtype=dtype).dtype == dtype
    assert random.normal(random.key(0), (3,), dtype=dtype).dtype == dtype
    assert random.bits(random.key(0), (3,)).dtype == torch.int64


def test_the_same_numbers_whatever_the_dtype():
    narrow, wide = (random.normal(random.key(3), (100,), dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert torch.allclose(narrow.double(), wide, atol=1e-6)


def statistics(sample):
    """The largest gap between the sample's distribution and the uniform one, in units of chance (Kolmogorov)."""
    ordered = sample.double().flatten().sort().values
    steps = torch.arange(1, len(ordered) + 1, dtype=torch.float64) / len(ordered)
    gap = torch.maximum((steps - ordered).abs(), (ordered - steps + 1 / len(ordered)).abs()).max()
    return gap.item() * math.sqrt(len(ordered))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_are_as_uniform_as_torchs(dtype):
    # Beyond 1.95 lies one sample in a thousand; torch's own generator is the control of the measure.
    control = torch.rand(COUNT, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert statistics(control) < 1.95
    sample = random.uniform(random.key(0), (COUNT,), dtype=dtype)
    assert statistics(sample) < 1.95
    assert sample.min() >= 0
    assert sample.max() < 1


def test_uniform_numbers_never_reach_one():
    largest = torch.tensor([(1 << 32) - 1])
    assert ((largest >> 8).to(torch.float32) * 2.0**-24).item() < 1


def test_normal_numbers_are_as_normal_as_torchs():
    def gaps(sample):
        uniform = torch.special.ndtr(sample.double())
        return statistics(uniform), sample.mean().item() * math.sqrt(COUNT), (sample.var().item() - 1) * COUNT**0.5

    control = gaps(torch.randn(COUNT, generator=torch.Generator().manual_seed(0)))
    sample = gaps(random.normal(random.key(0), (COUNT,)))
    for gap, mean, variance in (control, sample):
        assert gap < 1.95
        assert abs(mean) < 3.3
        assert abs(variance) < 3.3 * math.sqrt(2)
    assert random.normal(random.key(0), (COUNT,)).isfinite().all()


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_bernoulli_is_true_as_often_as_it_should(p):
    drawn = random.bernoulli(random.key(4), p, (COUNT,))
    assert drawn.dtype == torch.bool
    spread = math.sqrt(p * (1 - p) / COUNT)
    assert abs(drawn.double().mean().item() - p) <= 3.3 * spread


def test_streams_of_neighbouring_keys_are_unrelated():
    one, two = (random.uniform(random.key(seed), (COUNT,), dtype=torch.float64) - 0.5 for seed in (0, 1))
    correlation = (one * two).sum() / (one.norm() * two.norm())
    assert abs(correlation.item()) < 3.3 / math.sqrt(COUNT)
    halves = one.reshape(2, -1)
    assert abs((halves[0] * halves[1]).sum() / (halves[0].norm() * halves[1].norm())) < 3.3 / math.sqrt(COUNT / 2)


def test_keys_made_of_a_key_are_all_different():
    key = random.key(9)
    made = [
        key[None],
        random.fold_in(key, torch.arange(200)),
        random.fold_in(key, 1 << 40)[None],
        random.split(key, 200),
        random.call_key(key, torch.arange(200)),
        random.bits(key, (400,)).reshape(-1, 4)[:, :2],
        random.bits(key, (400,), site=1).reshape(-1, 4)[:, :2],
        random.fold_in(random.fold_in(key, 0), torch.arange(50)),
        random.split(random.split(key)[0], 50),
    ]
    together = torch.cat(made)
    assert len(torch.unique(together, dim=0)) == len(together)
    assert together.min() >= 0
    assert together.max() < 1 << 32


def test_folding_in_is_elementwise():
    key = random.key(9)
    assert random.fold_in(key, 3).shape == (2,)
    many = random.fold_in(key, torch.tensor([[1, 2], [3, 4]]))
    assert many.shape == (2, 2, 2)
    assert torch.equal(many[1, 0], random.fold_in(key, 3))


def test_no_generator_is_read_or_advanced():
    with guarded_world("law 1", "random"):
        first = random.normal(random.key(0), (5,)), random.split(random.key(0))
    torch.rand(3)
    assert torch.equal(first[0], random.normal(random.key(0), (5,)))


def test_under_vmap_each_member_has_its_own_key():
    keys = random.split(random.key(0), 3)
    together = torch.vmap(lambda key: random.normal(random.fold_in(key, 2), (4,)))(keys)
    for position in range(3):
        assert torch.equal(together[position], random.normal(random.fold_in(keys[position], 2), (4,)))


# Each generator that is elementwise, as a function of (key, shape, start, site).
ELEMENTWISE = {
    "bits": random.bits,
    "uniform": random.uniform,
    "uniform, bfloat16": lambda *a, **k: random.uniform(*a, dtype=torch.bfloat16, **k),
    "uniform, float64": lambda *a, **k: random.uniform(*a, dtype=torch.float64, **k),
    "normal": random.normal,
    "exponential": random.exponential,
    "gumbel": random.gumbel,
    "bernoulli": lambda key, shape, **k: random.bernoulli(key, 0.3, shape, **k),
    "truncated_normal": lambda key, shape, **k: random.truncated_normal(key, -1.0, 2.0, shape, **k),
    "mask": lambda key, shape, **k: at_least(key, shape, threshold=0xC0000001, **k),
    "randint": lambda key, shape, **k: random.randint(key, shape, -3, 100, **k),
    "randint, wide": lambda key, shape, **k: random.randint(key, shape, -(1 << 62), 1 << 62, **k),
    "categorical": lambda key, shape, **k: random.categorical(key, torch.tensor([0.0, 1.0, -1.0]), shape=shape, **k),
}
elementwise = pytest.mark.parametrize("draw", ELEMENTWISE.values(), ids=list(ELEMENTWISE))


@elementwise
@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 70) | st.just(2**34 - 9), count=st.integers(0, 40), seed=st.integers(0, 2**64 - 1))
def test_a_stream_can_be_entered_anywhere(draw, start, count, seed):
    key, site = random.key(seed), seed >> 3
    part = draw(key, (count,), start=start, site=site)
    assert torch.equal(part, draw(key, (count,), start=torch.tensor(start), site=site))
    if start <= 70:
        assert torch.equal(part, draw(key, (start + count,), site=site)[start:])


@elementwise
def test_shapes_are_one_stream_and_sites_are_others(draw):
    key = random.key(5)
    assert torch.equal(draw(key, (4, 5)), draw(key, (20,)).reshape(4, 5))
    assert draw(key, (0, 3)).shape == (0, 3)
    assert draw(key, ()).shape == ()
    streams = [draw(key, (64,), site=site) for site in (0, 1, 1 << 31, 1 << 32, (1 << 61) - 1)]
    assert len({tuple(stream.tolist()) for stream in streams}) == len(streams)


@elementwise
def test_the_same_bits_under_vmap_and_grad(draw):
    keys = random.split(random.key(0), 3)
    expected = torch.stack([draw(key, (9,), start=6, site=2) for key in keys])
    assert torch.equal(torch.vmap(lambda key: draw(key, (9,), start=6, site=2))(keys), expected)
    # One key, and each member enters its stream elsewhere.
    starts = torch.tensor([0, 3, 6])
    found = torch.vmap(lambda start: draw(keys[0], (5,), start=start))(starts)
    assert torch.equal(found, torch.stack([draw(keys[0], (5,), start=int(start)) for start in starts]))

    def drawn(x, key):
        made = draw(key, (9,), start=6, site=2)
        return (x * made.double()).sum(), made

    gradient, made = torch.func.grad(drawn, has_aux=True)(torch.ones(9, dtype=torch.float64), keys[0])
    assert torch.equal(made, expected[0])
    assert torch.equal(gradient, expected[0].double())


def test_the_eager_ways_have_the_bits_of_the_operations_written_out():
    # By Python's integers, by pieces of arrays, across a piece, across the high word of the block's number.
    place = _philox.site_words((5 << 32) + 77, 0)
    key = random.key(0x123456789ABCDEF)
    for count in (1, 3, 4 * 256, 4 * 256 + 1, 4 * _eager.PIECE + 7):
        for start in (0, 1, 6, (1 << 34) - 5, (1 << 34) - 4 * 300):
            right = _stream._written_out(key, start, count, place)
            assert torch.equal(_stream._in_place(key, start, count, place, 0), right)
            assert torch.equal(_stream._in_place(key, start, count, place, 24), (right >> 8) * 2.0**-24)
            assert torch.equal(_stream._in_place(key, start, count, place, 32), right.double() * 2.0**-32)
            for threshold in (0, 1, 1 << 31, int(right[0]), 0xFFFFFFFF):
                assert torch.equal(_stream._in_place(key, start, count, place, 0, threshold), right >= threshold)
    # They would see a site that is not passed on, and a key word that is not advanced.
    assert not torch.equal(_stream._in_place(key, 0, 9, (0, 0), 0), _stream._written_out(key, 0, 9, place))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_normal_numbers_in_pieces_are_those_made_at_once(dtype, monkeypatch):
    key = random.key(8)
    places = [(0, 4 * _eager.PIECE + 10), (3, 4 * _eager.PIECE + 10), ((1 << 34) - 7, 40), (5, 1), (2, 0)]
    pieces = [random.normal(key, (count,), dtype=dtype, start=start, site=3) for start, count in places]
    monkeypatch.setattr(_eager, "available", lambda key, start: False)
    for (start, count), found in zip(places, pieces, strict=True):
        assert torch.equal(found, random.normal(key, (count,), dtype=dtype, start=start, site=3))


@pytest.mark.parametrize("threshold", [0, 1, 1 << 31, (1 << 32) - 1, 1 << 32])
def test_a_mask_is_where_the_words_are_at_least_so_much(threshold):
    key, place = random.key(6), {"start": 3, "site": 9}
    assert torch.equal(
        at_least(key, (5, 40), threshold=threshold, **place), random.bits(key, (5, 40), **place) >= threshold
    )


def test_a_trace_records_a_draw_as_one_operation():
    # What torch traces inside a compiled scan does not count as compiling.
    def draw(key, start):
        kept = at_least(random.fold_in(key, start), (8, 5), threshold=1 << 31, start=start)
        return kept, random.normal(key, (3,), start=start)

    key = random.key(2)
    for mode in ("fake", "real"):
        graph = make_fx(draw, tracing_mode=mode)(key, torch.tensor(6))
        draws = [node for node in graph.graph.nodes if node.target is torch.ops.purestep.philox.default]
        assert len(draws) == 3
        assert len(graph.graph.nodes) < 60
        for found, right in zip(graph(key, torch.tensor(9)), draw(key, torch.tensor(9)), strict=True):
            assert torch.equal(found, right)


def test_what_one_thread_keeps_is_not_another_s_and_no_result_is_kept():
    key = random.key(1)
    first = random.bits(key, (5000,))
    before = first.clone()
    with torch.inference_mode():
        random.bits(random.key(2), (5000,))
    random.bits(random.key(3), (5000,))
    assert torch.equal(first, before)
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: random.bits(key, (5000,)), range(16)):
            assert torch.equal(made, before)


@pytest.mark.compiler
def test_compiled_it_gives_the_same_bits():
    # A start that is known and one that is not, derived keys, a batch of keys, each dtype of the operation.
    def draw(key, keys, start):
        folded = random.fold_in(key, start)
        return [
            random.uniform(random.call_key(key, start), (9,), start=3, site=1 << 40),
            random.bits(key, (9,), start=start),
            torch.vmap(lambda key: random.normal(random.fold_in(key, 3), (3,), start=start))(keys),
            folded,
            random.uniform(key, (9,), dtype=torch.float64, start=start),
            at_least(key, (37,), threshold=1 << 31, start=start),
            torch.vmap(lambda key: at_least(key, (9,), threshold=0xC0000001, start=2))(keys),
            # Strides of a block: were the loop of these fused with that of the words, they would all be the last.
            *(random.bits(key, (8, 4))[:, lane] * (lane + 1) for lane in range(4)),
        ]

    compiled = torch.compile(draw, fullgraph=True)
    # Starts at each place in a block, the last beyond 32 bits of its number.
    for seed in (0, 1, 3, 2**40):
        inputs = random.key(seed), random.split(random.key(seed), 2), torch.tensor(seed + 2)
        for eager, graph in zip(draw(*inputs), compiled(*inputs), strict=True):
            assert torch.equal(eager, graph)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@elementwise
def test_on_cuda_it_gives_the_same_numbers(draw):
    there = (
        draw(random.key(7, device="cuda"), (1001,), start=5, site=3) if draw is not ELEMENTWISE["categorical"] else None
    )
    if there is not None:
        torch.testing.assert_close(there.cpu(), draw(random.key(7), (1001,), start=5, site=3), rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    low=st.integers(-(1 << 63), (1 << 63) - 1),
    size=st.integers(1, 1 << 32) | st.integers(1, 1 << 63) | st.sampled_from([1, 1 << 32, (1 << 32) + 1, 1 << 63]),
    seed=st.integers(0, 2**64 - 1),
)
def test_randint_is_the_high_part_of_a_product(low, size, seed):
    high = min(low + size, 1 << 63)
    each = 2 if high - low <= 1 << 32 else 4
    words = random.bits(random.key(seed), (6, each)).tolist()
    wide = [sum(word << 32 * (each - 1 - place) for place, word in enumerate(row)) for row in words]
    expected = [low + (number * (high - low) >> 32 * each) for number in wide]
    assert random.randint(random.key(seed), (6,), low, high).tolist() == expected


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_a_permutation_has_every_index_once(n):
    order = random.permutation(random.key(3), n)
    assert order.sort().values.tolist() == list(range(n))
    if n == 1000:
        assert not torch.equal(order, random.permutation(random.key(4), n))
        assert not torch.equal(order, random.permutation(random.key(3), n, site=1))


def test_the_order_of_three_is_each_of_six_as_often():
    keys = random.split(random.key(1), 6000)
    orders = torch.vmap(lambda key: random.permutation(key, 3))(keys) @ torch.tensor([9, 3, 1])
    counts = orders.unique(return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-square, 5 degrees: one in a thousand lies beyond


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("word", [0, 1, (1 << 31), (1 << 32) - 1])
def test_no_word_makes_a_number_infinite(dtype, word, monkeypatch):
    monkeypatch.setattr(distributions, "bits", lambda key, shape, **place: torch.full(tuple(shape), word))
    key = random.key(0)
    for made in (
        random.normal(key, (4,), dtype=dtype),
        random.exponential(key, (4,), dtype=dtype),
        random.gumbel(key, (4,), dtype=dtype),
        random.truncated_normal(key, -math.inf, math.inf, (4,), dtype=dtype),
        random.truncated_normal(key, 30.0, math.inf, (4,), dtype=dtype),
    ):
        assert made.dtype == dtype
        assert made.isfinite().all()


@pytest.mark.parametrize(("lower", "upper"), [(-1.0, 2.0), (5.0, 5.5), (-40.0, -30.0), (30, math.inf), (-math.inf, 0)])
def test_truncated_normal_numbers_lie_between_the_bounds_as_they_should(lower, upper):
    made = random.truncated_normal(random.key(1), lower, upper, (COUNT,), dtype=torch.float64)
    assert made.min() >= lower
    assert made.max() <= upper
    if max(abs(made.min()), abs(made.max())) < 8:
        at = torch.special.ndtr(torch.tensor([-upper, -lower] if lower > 0 else [lower, upper], dtype=torch.float64))
        share = (torch.special.ndtr(-made if lower > 0 else made) - at[0]) / (at[1] - at[0])
        assert statistics(share) < 1.95


def test_categories_are_drawn_as_often_as_their_probabilities():
    p = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.1, 0.1, 0.1, 0.7]])
    drawn = random.categorical(random.key(2), p.log(), shape=(20000,))
    assert drawn.shape == (20000, 2)
    counts = F.one_hot(drawn, 4).double().sum(0)
    assert counts[0, 3] == 0
    excess = (counts - p * 20000) ** 2 / (p * 20000)
    assert excess[0, :3].sum() < 13.9  # two degrees of freedom, one in a thousand
    assert excess[1].sum() < 16.3


def test_derivatives_go_around_the_draws():
    logits = torch.zeros(3, requires_grad=True)
    assert not random.categorical(random.key(0), logits).requires_grad
    scale = torch.tensor(2.0, requires_grad=True)
    (random.normal(random.key(0), (5,)) * scale).sum().backward()
    assert scale.grad == random.normal(random.key(0), (5,)).sum()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: random.key(-1), ValueError, "seed must be an int of at least 0, got -1"),
        (lambda: random.key(1 << 64), ValueError, "seed must be below 2**64"),
        (lambda: random.key("a"), TypeError, "seed must be an int of at least 0, got 'a' of type str"),
        (lambda: random.key(True), TypeError, "got True"),
        (lambda: random.split(random.key(0), 0), ValueError, "count must be an int of at least 1, got 0"),
        (lambda: random.bits([0, 1], (3,)), TypeError, "key must be an int64 tensor of shape (2,)"),
        (lambda: random.bits(torch.zeros(2), (3,)), ValueError, "got torch.float32 of shape (2,)"),
        (lambda: random.bits(random.split(random.key(0)), (3,)), ValueError, "got torch.int64 of shape (2, 2)"),
        (lambda: random.fold_in(random.key(0), -1), ValueError, "data must be an int of at least 0, got -1"),
        (lambda: random.fold_in(random.key(0), 1 << 63), ValueError, "data must be below 2**63"),
        (
            lambda: random.fold_in(random.key(0), torch.ones(2)),
            TypeError,
            "data must be an int or an int64 tensor, got",
        ),
        (lambda: random.call_key(random.key(0), 1.0), TypeError, "calls must be an int of at least 0, got 1.0"),
        (lambda: random.bits(random.key(0), (3,), site=-1), ValueError, "site must be an int of at least 0, got -1"),
        (lambda: random.bits(random.key(0), (3,), site=1 << 61), ValueError, "site must be below 2**61"),
        (lambda: random.bits(random.key(0), (3,), start=-4), ValueError, "start must be an int of at least 0, got -4"),
        (lambda: random.bits(random.key(0), (3,), start=1.5), TypeError, "start must be an int of at least 0, got 1.5"),
        (lambda: random.normal(random.key(0), (3,), start=1 << 63), ValueError, "start must be below 2**63"),
        (lambda: random.normal(random.key(0), (3,), start=torch.zeros(2).long()), ValueError, "of shape (2,)"),
        (lambda: random.normal(random.key(0), 3), TypeError, "shape must be a sequence of ints such as (3,), got 3"),
        (lambda: random.gamma(random.key(0), 3, concentration=1.0), TypeError, "shape must be a sequence of ints"),
        (lambda: random.gamma(random.key(0), (3,), concentration=0), ValueError, "concentration must be a finite"),
        (
            lambda: random.gamma(random.key(0), (3,), concentration=torch.ones(2)),
            ValueError,
            "concentration must broadcast to (3,), got shape (2,)",
        ),
        (
            lambda: random.gamma(random.key(0), (3,), concentration=1.0, dtype=torch.int64),
            TypeError,
            "dtype must be float16",
        ),
        (lambda: random.poisson(random.key(0), (3,), rate=-1), ValueError, "rate must be a finite number at least 0"),
        (lambda: random.poisson(random.key(0), (3,), rate=1, start=-1), ValueError, "at least 0, got -1"),
        (lambda: random.binomial(random.key(0), (3,), count=2.5, p=0.5), TypeError, "count must be an int of at least"),
        (lambda: random.binomial(random.key(0), (3,), count=2, p=1.5), ValueError, "p must be a finite number at leas"),
        (lambda: random.uniform(random.key(0), (3,), dtype=torch.int64), TypeError, "dtype must be float16, bfloat16"),
        (lambda: random.bernoulli(random.key(0), 1.5, (3,)), ValueError, "p must be a finite number at least 0 and"),
        (lambda: random.randint(random.key(0), (3,), 2, 2), ValueError, "low must be below high"),
        (lambda: random.randint(random.key(0), (3,), 0, 2.0), TypeError, "high must be an int, got 2.0"),
        (lambda: random.randint(random.key(0), (3,), -(1 << 63), 1 << 63), ValueError, "at most 2**63 apart"),
        (lambda: random.permutation(random.key(0), -1), ValueError, "n must be an int of at least 0, got -1"),
        (lambda: random.truncated_normal(random.key(0), 1.0, 1.0, (3,)), ValueError, "lower must be below upper"),
        (lambda: random.truncated_normal(random.key(0), 0.0, math.nan, (3,)), ValueError, "lower must be below upper"),
        (lambda: random.truncated_normal(random.key(0), "a", 1.0, (3,)), TypeError, "lower must be a number, got 'a'"),
        (
            lambda: random.truncated_normal(random.key(0), 40.0, 41.0, (3,)),
            ValueError,
            "numbers between them that occur",
        ),
        (
            lambda: random.categorical(random.key(0), torch.ones(2).long()),
            TypeError,
            "logits must be a floating tensor",
        ),
        (lambda: random.categorical(random.key(0), torch.ones(2, 0)), ValueError, "at least one category, got (2, 0)"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_it_is_the_module_of_the_package():
    assert ps.random is random
