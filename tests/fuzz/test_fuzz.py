"""Some hundred changed inputs of every kind in one process each; ``python -m tests.fuzz`` is the long run."""

from __future__ import annotations

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.runs import run_kind

COUNTS = {
    "manifest": 30,
    "engine-record": 30,
    "tokenizer": 20,
    "onnx": 20,
    "recipe": 30,
    "picture": 50,
    "links": 20,
    "bodies": 150,
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
