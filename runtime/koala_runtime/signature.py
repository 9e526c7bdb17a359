"""Whether a bundle is signed by a key that the caller trusts. Needs the extra ``sign`` (py-minisign)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from koala_bundle.errors import ArgumentError, BundleError, InputError
from koala_bundle.files import read_bytes
from koala_bundle.places import refuse_link_out
from koala_bundle.signed import MOST_BYTES, SIGNATURE, SUMS, parse_sums

if TYPE_CHECKING:
    from minisign import PublicKey

_LONGEST_KEY = 10_000  # bytes of a key's file
_KEY_CHARACTERS = 56  # of 42 bytes in base64
_SIGN = "ask its author for a signed one, or sign it with `koala sign` if you trust what it holds"


def check_signed(bundle: Path, key: str | Path, digests: Mapping[str, str]) -> str:
    """Raise BundleError unless ``key`` has signed the files of ``bundle`` with these SHA-256, by name.

    ``key`` is a minisign public key, or the file of one. Returns the signature's trusted comment. Raises ArgumentError
    for a key that is none, InputError where the package is missing.
    """
    require_minisign()
    from minisign import Error, Signature

    public = read_public_key(key)
    content, signature = (_read(bundle, name) for name in (SUMS, SIGNATURE))
    try:
        signed = Signature.from_bytes(signature)
        public.verify(content, signed)
    except (Error, ValueError) as error:
        raise BundleError(
            str(bundle / SIGNATURE), expected=f"a signature of {SUMS} by the key given", found=str(error), fix=_SIGN
        ) from None
    covered = parse_sums(bundle / SUMS, content)
    for name, digest in digests.items():
        if name not in covered:
            raise BundleError(
                str(bundle / name), expected="a file that is signed", found="one that was added later", fix=_SIGN
            )
        if covered[name] != digest:
            raise BundleError(
                str(bundle / name), expected="the file that was signed", found="another, or changed bytes", fix=_SIGN
            )
    return str(signed.trusted_comment)


def read_public_key(key: str | Path) -> PublicKey:
    """Return a minisign public key, given as such or as a file. Raises ArgumentError."""
    from minisign import Error, PublicKey

    try:
        if isinstance(key, str) and len(key) == _KEY_CHARACTERS and key.startswith("RW") and not Path(key).exists():
            return PublicKey.from_base64(key)
        return PublicKey.from_bytes(read_bytes(Path(key), _LONGEST_KEY, "pass a minisign public key"))
    except (OSError, Error, ValueError, BundleError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ArgumentError(
            "public key",
            expected="a minisign public key, or the file of one",
            found=f"{str(key)[:200]!r} ({reason[:1].lower()}{reason[1:]})",
            fix="pass what `koala sign --generate` or `minisign -G` wrote to the .pub file",
        ) from None


def require_minisign() -> None:
    """Raise InputError unless the package that reads signatures is installed."""
    if find_spec("minisign") is None:
        raise InputError(
            "a signature",
            expected="the package py-minisign",
            found="none",
            fix="install it with `pip install koala-trt[sign]`",
        )


def _read(bundle: Path, name: str) -> bytes:
    path = bundle / name
    refuse_link_out(path, bundle, _SIGN)
    if not path.is_file():
        raise BundleError(str(path), expected="a signed bundle", found="one without a signature", fix=_SIGN)
    return read_bytes(path, MOST_BYTES, _SIGN)
