"""``koala batch``: a file of prompts to pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from koala_bundle.errors import ArgumentError
from koala_bundle.files import file_entry
from koala_bundle.manifest import MANIFEST, read_manifest
from koala_bundle.swap import whole
from koala_cli.extras import require_packages
from koala_cli.files import make_output_folder
from koala_cli.options import Bundle, Device, RayAddress, RunTarget, SignedBy, argument, option
from koala_cli.screen import note, progress_bar, say


def batch(
    bundle: Bundle,
    prompts: Annotated[Path, argument("PROMPTS", "A .jsonl file, an object per line, or .txt, a prompt per line.")],
    output: Annotated[Path, argument("OUTPUT", "The folder for the pictures and results.jsonl.")],
    seed: Annotated[int, option("Added to a row's number where it has no seed of its own. Default: 0.")] = 0,
    target: RunTarget = None,
    device: Device = None,
    low_memory: Annotated[
        bool, option("Keep on the GPU only what a phase needs; this is slower.", "--low-memory")
    ] = False,
    signed_by: SignedBy = None,
    ray: RayAddress = None,
    workers: Annotated[int, option("With --ray: how many there are. Default: 1.", metavar="<N>")] = 1,
    worker_cpus: Annotated[float, option("With --ray: processors of each. Default: 1.", metavar="<N>")] = 1.0,
    worker_gpus: Annotated[
        float, option("With --ray: GPUs of each, or a share of one. Default: 0.", metavar="<N>")
    ] = 0.0,
) -> None:
    """Draw a file of prompts.

    Pictures do not depend on which rows are drawn together, where, or in how many runs: the same command resumes after
    an interruption, and tries rows again that failed.
    """
    from koala_fleet.batch import check_prompts, run_local
    from koala_fleet.results import Record, Results

    read_manifest(bundle)
    count, digest = check_prompts(prompts, seed)
    make_output_folder(output)
    results = Results(output, Record(digest, file_entry(whole(bundle) / MANIFEST).sha256))
    before = len(results.done)
    try:
        with progress_bar() as update:
            options = {"target": target, "low_memory": low_memory, "key": signed_by}
            if len(results.done) == count:
                pass
            elif ray is None:
                run_local(bundle, prompts, results, seed, {**options, "device": device}, count, update)
            else:
                require_packages(("ray",), "ray")
                from koala_fleet.ray_batch import Share, run_on_ray

                if device is not None:
                    raise ArgumentError(
                        "device", expected="none with --ray, which gives out GPUs", found=device, fix="leave it out"
                    )
                share = Share(workers, worker_cpus, worker_gpus)
                run_on_ray(ray, bundle, prompts, results, seed, options, share, count, update)
    finally:
        results.close()
    note(f"{len(results.done) - before} rows done now, {before} before, {results.failed} failed")
    say(str(output))
    if results.failed:
        raise typer.Exit(1)
