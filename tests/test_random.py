"""Random numbers as functions of a key: the published vectors, the distributions, and no generator touched."""

from __future__ import annotations

import math

import pytest
import torch

import purestep as ps
from purestep import random
from purestep.laws._world import guarded_world

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
    got = random._philox(*words(*key), *words(c0, c1, c2), purpose)
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
        torch.stack([random.site_key(key, torch.tensor(call), site) for call in range(5) for site in range(5)]),
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


@pytest.mark.compiler
def test_compiled_it_gives_the_same_bits():
    def draw(key):
        return random.uniform(random.fold_in(key, 5), (9,))

    compiled = torch.compile(draw, fullgraph=True)
    for seed in (0, 2**40 + 1):
        assert torch.equal(draw(random.key(seed)), compiled(random.key(seed)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: random.key(-1), ValueError, "seed must be an int of at least 0, got -1"),
        (lambda: random.key(1 << 64), ValueError, "seed must be below 2**64"),
        (lambda: random.key("a"), TypeError, "seed must be an int of at least 0, got 'a' of type str"),
        (lambda: random.key(True), TypeError, "got True"),
        (lambda: random.split(random.key(0), 0), ValueError, "count must be an int of at least 1, got 0"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_it_is_the_module_of_the_package():
    assert ps.random is random
