"""The page on samplers: its list is that of the code, its figures are those of the committed measurement."""

from __future__ import annotations

import shlex

import pytest

from koala_bench.samplers import load, make_parser, markdown
from koala_bundle.errors import ArgumentError
from koala_runtime import EulerDiscreteScheduler
from koala_runtime.samplers import NAMES, Schedule, choose
from koala_runtime.samplers.names import STEMS
from tests.docs.test_pages import COMMANDS, PAGES
from tests.docs.test_site import ROOT

RESULTS = ROOT / "bench" / "results" / "samplers-koala-tiny"
STEPS = 20
EVALUATIONS = {STEPS: "n", STEPS + 1: "n + 1", 2 * STEPS - 1: "2n - 1"}
SPACINGS = ("karras", "exponential", "beta")


def draws(name: str, eta: float) -> bool:
    try:
        return bool(choose(name, EulerDiscreteScheduler()).table(Schedule(STEPS, eta=eta)).draws.any())
    except ArgumentError:  # takes no eta
        return False


@pytest.mark.parametrize("name", STEMS)
def test_the_list_of_samplers(name: str) -> None:
    named, table = STEMS[name], choose(name, EulerDiscreteScheduler()).table(Schedule(STEPS))
    noise = "yes" if draws(name, 0.0) else "with `eta`" if draws(name, 1.0) else "no"
    (spacings,) = {"yes" if f"{name}_{each}" in NAMES else "no" for each in SPACINGS}
    cells = (f"`{name}`", named.label, f"`{named.class_name}`", EVALUATIONS[len(table.timesteps)], noise, spacings)
    assert f"| {' | '.join(cells)} |" in PAGES["samplers"].splitlines()


def test_no_other_sampler_is_listed() -> None:
    rows = PAGES["samplers"].partition("## All of them")[2].partition("\n## ")[0]
    assert [line.split("`")[1] for line in rows.splitlines() if line.startswith("| `")] == [*STEMS]


def test_the_tables_are_those_of_the_measurement() -> None:
    assert (RESULTS / "results.md").read_text("utf-8") == markdown(load(RESULTS / "samplers.json"))


def test_the_commands_can_be_given() -> None:
    given = [shlex.split(line) for line in COMMANDS if line.startswith("python -m koala_bench.samplers")]
    assert given
    assert all(make_parser().parse_args(words[3:]).steps for words in given)
