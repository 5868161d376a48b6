"""The fuzzers in short: what the corpus holds, changed here and there, and any bytes at all."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, TARGETS, corpus

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))


@st.composite
def changed(draw: st.DrawFn, kept: list[bytes]) -> bytes:
    """An input of the corpus with some pieces replaced, cut out, or taken from another one."""
    data = draw(st.sampled_from(kept))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 16)))
        other = draw(st.sampled_from(kept))
        piece = draw(st.binary(max_size=8) | st.just(other[start : stop + 4]))
        data = data[:start] + piece + data[stop:]
    return data


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_any_input_is_read_or_refused(name: str, data: st.DataObject) -> None:
    kept = [path.read_bytes() for path in corpus(name)]
    TARGETS[name](data.draw(st.binary(max_size=200) | changed(kept)))


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_fuzzers_have_found_is_kept(name: str) -> None:
    for path in corpus(name):
        try:
            TARGETS[name](path.read_bytes())
        except BaseException as error:
            error.add_note(str(path))
            raise


def test_every_corpus_has_a_target_and_every_target_a_small_corpus() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    for name in TARGETS:
        sizes = [path.stat().st_size for path in corpus(name)]
        assert 0 < len(sizes) <= 64
        assert max(sizes) <= 8192
