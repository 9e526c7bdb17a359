"""The README's table: ``python -m koala_bench.readme RESULTS_JSON README_MD`` writes it between its markers."""

from __future__ import annotations

import sys
from pathlib import Path

from koala_bench.results import Results, load
from koala_bench.tables import Rows, as_markdown
from koala_bundle.errors import ArgumentError
from koala_bundle.files import write_atomic

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
COLUMNS = ("backend", "ms per picture", "first picture, s", "memory, MB", "installation, MB")


def readme_table(results: Results) -> str:
    """Return one row per backend in Markdown: median latency, first picture, peak memory, size of the installation."""
    rows: Rows = [
        (
            each.name,
            f"{1e3 * each.quantile(0.5):,.0f}",
            f"{each.first_seconds:.1f}",
            f"{each.host_bytes / 1e6:,.0f}",
            f"{each.install_bytes / 1e6:,.0f}",
        )
        for each in results.measured
    ]
    return as_markdown(COLUMNS, rows)


def replace_table(page: str, table: str) -> str:
    """Return ``page`` with ``table`` between the markers. Raises ArgumentError if ``page`` has no markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ArgumentError(
            "page", expected=f"{BEGIN} and {END}", found="a page without them", fix="add a line with each"
        )
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main(results_json: str, page_path: str) -> None:
    """Update the table in a page."""
    page = Path(page_path)
    text = replace_table(page.read_text(encoding="utf-8"), readme_table(load(Path(results_json))))
    write_atomic(page, text.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
