"""Some hundred changed inputs of every kind in one process each; ``python -m tests.fuzz`` is the long run."""

from __future__ import annotations

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.runs import run_kind

COUNTS = {
    "manifest": 60,
    "engine-record": 60,
    "tokenizer": 40,
    "onnx": 40,
    "recipe": 60,
    "picture": 100,
    "links": 20,
    "bodies": 300,
}


@pytest.mark.parametrize("name", COUNTS)
def test_what_strangers_send_is_accepted_or_refused(name: str) -> None:
    tally = run_kind(name, 0, COUNTS[name])
    assert tally.findings == {}
    assert tally.ended["refused"] > COUNTS[name] // 10
    assert tally.ended.total() == COUNTS[name]


@pytest.mark.full
@pytest.mark.parametrize("name", KINDS)
def test_two_thousand_of_each_kind(name: str) -> None:
    assert run_kind(name, 50_000, 2_000).findings == {}
