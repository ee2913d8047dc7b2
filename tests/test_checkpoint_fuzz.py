"""Any text where a manifest should be: it is read, or refused with the documented error."""

from __future__ import annotations

import contextlib
import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from _checkpoints import MANIFEST, small_state
from purestep.checkpoint import CheckpointError, _manifest, load_extra, save


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the manifest of a checkpoint says."""
    path = save(tmp_path_factory.mktemp("whole") / "a", small_state(), extra={"note": "é", "x": [1.5, None]})
    fields = json.loads((path / MANIFEST).read_text())
    fields.pop("sha256")
    return fields


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


TEXTS = st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode())


@given(text=TEXTS)
def test_any_text_is_refused_in_order(text):
    with pytest.raises(CheckpointError):
        _manifest.parsed(text, "it")


@given(data=st.data())
def test_any_field_is_read_or_refused_in_order(said, data):
    said = copy.deepcopy(said)
    name = data.draw(st.sampled_from(sorted(said)))
    where, at = said, name
    while isinstance(where[at], dict) and where[at] and data.draw(st.booleans()):
        where, at = where[at], data.draw(st.sampled_from(sorted(where[at])))
    where[at] = data.draw(JSON)
    with contextlib.suppress(CheckpointError):
        manifest = _manifest.parsed(_manifest._text(said).encode(), "it")
        assert _manifest.written(manifest) == _manifest._text(said).encode()


@pytest.mark.faults
@settings(max_examples=3000)
@given(data=st.data())
def test_any_text_and_field_at_length(said, data):
    test_any_field_is_read_or_refused_in_order.hypothesis.inner_test(said, data)
    test_any_text_is_refused_in_order.hypothesis.inner_test(data.draw(TEXTS))


@given(extra=JSON)
def test_what_is_taken_as_extra_comes_back(tmp_path_factory, extra):
    path = save(tmp_path_factory.mktemp("extra") / "a", small_state(), extra=extra)
    assert repr(load_extra(path)) == repr(extra)
