"""Writes the table of speeds in README.md from measured results: `python docs/readme_table.py`."""

from __future__ import annotations

import sys
from pathlib import Path

from koala_bench.results import Results, load

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "cpu-koala-tiny" / "results.json"
START, END = "<!-- speed: written by `python docs/readme_table.py` from bench/results -->\n", "<!-- end of speed -->"
ROWS = {
    "**koala-trt**": "koala:cpu",
    "diffusers": "diffusers",
    "diffusers, torch.compile": "diffusers-compile",
    "optimum-onnx": "optimum-onnx",
    "OpenVINO": "openvino",
}


def table(results: Results) -> str:
    """Return the table in Markdown; a backend without a measurement has no figures."""
    lines = [
        "| koala-tiny on the processor | a picture | first picture | memory | installation |",
        "|---|---:|---:|---:|---:|",
    ]
    measured = {each.name: each for each in results.measured}
    for label, name in ROWS.items():
        each = measured.get(name)
        if each is None:
            lines.append(f"| {label} | not measured yet | | | |")
            continue
        figures = (
            f"{1e3 * each.quantile(0.5):,.0f} ms",
            f"{each.start:.1f} s",
            f"{each.host_bytes / 1e6:,.0f} MB",
            f"{each.install_bytes / 1e6:,.0f} MB",
        )
        lines.append(f"| {label} | {' | '.join(figures)} |")
    profile, machine = results.profile, results.machine
    lines += [
        "",
        f"{profile.width} x {profile.height} px, {results.steps} steps, guidance {results.guidance_scale:g}; median of "
        f"{len(results.measured[0].warm_seconds)} pictures each, drawn in turn on {machine.cores} cores "
        f"({machine.processor}).",
        "First picture: from the start of the process. [How it was measured](docs/benchmarks.md).",
    ]
    return "\n".join(lines)


def filled(readme: str, content: str) -> str:
    """Return the README with ``content`` between its two marks."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}{content}\n{END}{after}"


def main() -> int:
    """Rewrite README.md."""
    path = ROOT / "README.md"
    path.write_text(filled(path.read_text("utf-8"), table(load(RESULTS))), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
