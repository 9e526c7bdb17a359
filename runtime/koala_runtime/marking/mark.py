"""What a file gets: metadata, and credentials where there is a certificate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from koala_bundle.errors import ArgumentError
from koala_runtime.marking.metadata import check_format, metadata_options

__all__ = ["Mark", "check_mark", "metadata_options", "sign"]


@dataclass(frozen=True)
class Mark:
    """How to mark a file: always by XMP; with ``certificate`` and ``key``, PEM files, also by C2PA credentials.

    ``certificate`` holds the chain, the signer's own first. ``time_authority`` is the URL of an RFC 3161 server; None
    asks none, and nothing uses the network.
    """

    certificate: Path | None = None
    key: Path | None = None
    time_authority: str | None = None


def check_mark(mark: Mark, format: str, what: str = "format") -> None:
    """Raise ArgumentError, before anything is drawn, for what could not be written or signed afterwards."""
    check_format(format, what)
    for name, other in (("certificate", "key"), ("key", "certificate")):
        if getattr(mark, name) is None and getattr(mark, other) is not None:
            raise ArgumentError(
                name, expected=f"a file beside the {other}", found="none", fix="pass both, or neither of them"
            )
    if mark.certificate is not None and mark.key is not None:
        from koala_runtime.marking.credentials import read_signer

        read_signer(mark.certificate, mark.key, mark.time_authority)


def sign(data: bytes, format: str, mark: Mark | None) -> bytes:
    """Return the file with credentials, or as it is without a certificate. Raises ArgumentError."""
    if mark is None:
        return data
    check_mark(mark, format)
    if mark.certificate is None or mark.key is None:
        return data
    from koala_runtime.marking.credentials import read_signer, sign_file

    return sign_file(data, format, read_signer(mark.certificate, mark.key, mark.time_authority))
