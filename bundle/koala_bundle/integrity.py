"""A bundle as a whole: every file that has a digest is there with its bytes."""

from __future__ import annotations

from pathlib import Path

from koala_bundle.engine_record import ENGINE_RECORD, engine_folder, engine_variants, read_engine_record
from koala_bundle.files import check_files, relative
from koala_bundle.manifest import MANIFEST, TOKENIZERS, read_manifest
from koala_bundle.swap import whole
from koala_bundle.targets import TARGETS

_BESIDE = {MANIFEST, "SHA256SUMS", "SHA256SUMS.minisig"}


def check_bundle(bundle: Path) -> tuple[list[str], list[str]]:
    """Return the files that were read and have their digests, and those in the folder that no digest covers.

    A bundle that was shipped without its ONNX files may lack all of them. Raises BundleError for the first file that is
    missing or has other bytes.
    """
    manifest = read_manifest(bundle)
    files = manifest.files
    if not (bundle / "onnx").exists():
        files = {name: entry for name, entry in files.items() if name.startswith(TOKENIZERS)}
    check_files(bundle, files, f"export the bundle again with `koala export SOURCE {bundle}`")
    checked = {*files}
    for target in TARGETS:
        for variant in engine_variants(bundle, target):
            folder = whole(engine_folder(bundle, target, variant))
            record = read_engine_record(bundle, target, variant)
            check_files(folder, record.files, f"build the engines for {target} again", bundle)
            checked |= {relative(bundle, folder / name) for name in (*record.files, ENGINE_RECORD)}
    there = {relative(bundle, path) for path in bundle.rglob("*") if path.is_file()}
    return sorted(checked), sorted(there - checked - _BESIDE)
