"""SHA256SUMS: what a signature of a bundle covers, in the form that ``sha256sum --check`` reads.

It lists manifest.json and the engine.json of every set of plans; these hold the digests of all other files. The
signature is ``SHA256SUMS.minisig`` (jedisct1.github.io/minisign). Neither file is listed in a manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from koala_bundle.engine_record import ENGINE_RECORD, engine_folder, engine_variants, open_engine_record
from koala_bundle.errors import BundleError
from koala_bundle.files import relative
from koala_bundle.manifest import MANIFEST, open_manifest
from koala_bundle.targets import TARGETS, Target

SUMS = "SHA256SUMS"
SIGNATURE = f"{SUMS}.minisig"
MOST_BYTES = 1_000_000
"""Of either file."""
_LINE = re.compile(r"([0-9a-f]{64})  ([^\s\\]+)")


def record_name(bundle: Path, target: Target, variant: str) -> str:
    """Return the path in the bundle of the engine.json of a set of plans."""
    return relative(bundle, engine_folder(bundle, target, variant) / ENGINE_RECORD)


def record_digests(bundle: Path) -> dict[str, str]:
    """Return the SHA-256 of manifest.json and of every engine.json. Raises BundleError for one that is not right."""
    digests = {MANIFEST: open_manifest(bundle)[1]}
    for target in TARGETS:
        for variant in engine_variants(bundle, target):
            digests[record_name(bundle, target, variant)] = open_engine_record(bundle, target, variant)[1]
    return digests


def format_sums(digests: Mapping[str, str]) -> bytes:
    """Return the content of SHA256SUMS."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()


def parse_sums(path: Path, content: bytes) -> dict[str, str]:
    """Return the SHA-256 of each file that SHA256SUMS lists. Raises BundleError."""
    lines = content.decode("ascii", "replace").splitlines()
    found = [_LINE.fullmatch(line) for line in lines]
    digests = {match[2]: match[1] for match in found if match}
    if len(digests) != len(lines) or not digests:
        raise BundleError(
            str(path),
            expected="lines of a SHA-256 and a file's name",
            found="others",
            fix="sign the bundle again with `koala sign`",
        )
    return digests
