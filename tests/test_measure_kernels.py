"""The worked example of bench/kernels.py: its ways compute one thing, and its table says what they move."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from _measuring import ON_CUDA, roof


@pytest.fixture(scope="module")
def kernels():
    path = Path(__file__).parent.parent / "bench" / "kernels.py"
    spec = importlib.util.spec_from_file_location("bench_kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def right(x):
    return x.double() / (1 + torch.exp(-(1.702 * x.double() + 0.5)))


def arrays(length, device="cpu"):
    x = 4 * torch.randn(length, generator=torch.Generator().manual_seed(0)).to(device)
    return x, torch.full_like(x, 7.0)


def test_eager_ways_compute_the_gate(kernels):
    x, y = arrays(1001)
    for computed in (kernels.gate(x), kernels.gate_in_place(x, y), kernels.gate_into(x, torch.empty_like(x))):
        torch.testing.assert_close(computed.double(), right(x), rtol=1e-5, atol=1e-6)


def test_a_wrong_kernel_is_no_result(kernels):
    x, _ = arrays(10)
    kernels.check({"copy": lambda: x, "good": lambda: kernels.gate(x)}, x)
    with pytest.raises(AssertionError, match="bad: "):
        kernels.check({"bad": lambda: kernels.gate(x) * 1.001}, x)


def test_what_is_kept_of_a_size(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "compiler_missing", lambda: "not now: it takes seconds")
    seen = kernels.measured(256, roof(), argparse.Namespace(threads=1, max_time=0.05))
    assert (seen["floats"], seen["least_bytes"], seen["in_cache"]) == (256, 2 * 256 * 4, True)
    assert set(seen["results"]) == {"copy", "eager, as written", "eager, in place"}
    for each in seen["results"].values():
        assert each["ceiling_fraction"] == pytest.approx(2048 / each["median_seconds"] / 1e10)
        assert each["floor_fraction"] * each["ratio"] == pytest.approx(1)
    moved = {name: each["bytes_moved"] for name, each in seen["results"].items()}
    assert moved == {"copy": 2048, "eager, as written": 9216, "eager, in place": 9216}
    assert "x and y: 2.000 KiB, within the last cache" in kernels.shown(seen)


def test_the_page_has_the_tables_of_the_result(kernels):
    path = Path(kernels.__file__).parent / "results" / "kernels.json"
    result, page = json.loads(path.read_text()), kernels.PAGE.read_text()
    assert kernels.fill(page, result) == page
    result["works"][0]["results"]["copy"]["median_seconds"] *= 2
    assert kernels.fill(page, result) != page


@pytest.mark.compiler
def test_the_compiled_way_computes_the_gate(kernels):
    x, y = arrays(1001)
    kernels.check(kernels.ways(x, y), x)


@pytest.mark.cuda
@ON_CUDA
@pytest.mark.parametrize("length", [0, 1, 1023, 1024, 100_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_triton_kernel_computes_the_gate_and_writes_nothing_else(kernels, length, dtype):
    pytest.importorskip("triton")
    x, y = (each.to(dtype) for each in arrays(length + 5, "cuda"))
    kernels.gate_by_triton(x[:length], y[:length])
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(y[:length].double(), right(x[:length]), **tolerance)
    assert (y[length:] == 7).all()


@pytest.mark.cuda
@ON_CUDA
def test_the_triton_kernel_refuses_what_it_cannot_walk(kernels):
    pytest.importorskip("triton")
    x = torch.ones(4, 4, device="cuda")
    with pytest.raises(ValueError, match="x and y must be contiguous, of one shape and device"):
        kernels.gate_by_triton(x.T[:, :2], x[:, :2])


@pytest.mark.cuda
@ON_CUDA
def test_a_size_on_cuda_has_all_the_ways(kernels):
    pytest.importorskip("triton")
    rates = kernels.measure.ceilings("cuda")
    seen = kernels.measured(1 << 20, rates, argparse.Namespace(threads=None, max_time=0.3))
    assert set(seen["results"]) == set(kernels.ARRAYS)
