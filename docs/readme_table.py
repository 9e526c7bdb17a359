"""Writes the table of speeds in README.md from measured results: `python docs/readme_table.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "cpu-koala-tiny" / "results.json"
START, END = "<!-- speed: written by `python docs/readme_table.py` from bench/results -->\n", "<!-- end of speed -->"
ROWS = {
    "**koala-trt**": "koala:cpu",
    "diffusers": "diffusers",
    "diffusers, torch.compile": "diffusers-compile",
    "optimum-onnx": "optimum-onnx",
    "OpenVINO": "openvino-genai",
}


def table(results: dict[str, Any]) -> str:
    """Return the table in Markdown for a results.json; a backend without a measurement has no figures."""
    lines = [
        "| koala-tiny on the processor | a picture | first picture | memory | installation |",
        "|---|---:|---:|---:|---:|",
    ]
    measured = {each["name"]: each for each in results["measured"]}
    for label, name in ROWS.items():
        each = measured.get(name)
        if each is None:
            lines.append(f"| {label} | not measured yet | | | |")
            continue
        figures = (
            f"{1e3 * median(each['warm_seconds']):,.0f} ms",
            f"{median(each['cold_seconds']):.1f} s",
            f"{each['host_bytes'] / 1e6:,.0f} MB",
            f"{each['install_bytes'] / 1e6:,.0f} MB",
        )
        lines.append(f"| {label} | {' | '.join(figures)} |")
    profile, machine, runs = results["profile"], results["machine"], len(results["measured"][0]["warm_seconds"])
    lines += [
        "",
        f"{profile['width']} x {profile['height']} px, {results['steps']} steps, "
        f"guidance {results['guidance_scale']:g}.",
        f"Median of {runs} pictures, drawn in turn on {machine['cores']} cores ({machine['processor']}).",
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
    path.write_text(filled(path.read_text("utf-8"), table(json.loads(RESULTS.read_bytes()))), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
