"""C2PA content credentials (specification 2.2): who says, and signs, that a model made the picture."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from koala_bundle import __version__
from koala_bundle.errors import ArgumentError, KoalaError, first_line
from koala_runtime.marking.metadata import SOURCE_TYPE

_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
_MANIFEST = {
    "claim_generator_info": [{"name": "koala-trt", "version": __version__}],
    "assertions": [
        {
            "label": "c2pa.actions.v2",
            "data": {
                "actions": [
                    {
                        "action": "c2pa.created",
                        "digitalSourceType": SOURCE_TYPE,
                        "softwareAgent": {"name": "koala-trt", "version": __version__},
                    }
                ]
            },
        }
    ],
}
# The package's own check reads the file again after signing; trust lists are the reader's.
_SETTINGS = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


def read_signer(certificate: Path, key: Path, time_authority: str | None = None) -> Any:
    """Return c2pa-python's description of a signer.

    Raises ArgumentError if the package is missing, a file cannot be read, or the key is not the certificate's.
    """
    try:
        import c2pa
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise ArgumentError(
            "certificate",
            expected="the package c2pa-python, which signs",
            found="none installed",
            fix="pip install koala-trt[mark]",
        ) from None
    chain_pem, key_pem = _read("certificate", certificate), _read("key", key)
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
    except ValueError as error:
        raise _unreadable("certificate", certificate, "PEM certificates, the signer's own first", error) from None
    try:
        private = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise _unreadable("key", key, "a private key in PEM, without a password", error) from None
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*spki) != chain[0].public_key().public_bytes(*spki):
        raise ArgumentError(
            "key",
            expected=f"the private key of {certificate}",
            found=f"another one, {key}",
            fix="pass the key with which the certificate was requested; the signer's own comes first",
        )
    return c2pa.C2paSignerInfo(_algorithm(private, key), chain_pem, key_pem, time_authority)


def sign_file(data: bytes, format: str, signer: Any) -> bytes:
    """Return a PNG, JPEG or WebP file with credentials. Raises KoalaError if c2pa refuses."""
    import c2pa

    made = BytesIO()
    try:
        with (
            c2pa.Context(c2pa.Settings.from_dict(_SETTINGS)) as context,
            c2pa.Signer.from_info(signer) as opened,
            c2pa.Builder(json.dumps(_MANIFEST), context=context) as builder,
        ):
            builder.sign(opened, f"image/{format.lower()}", BytesIO(data), made)
    except c2pa.C2paError as error:
        raise KoalaError(
            "certificate",
            expected="one that signs content credentials (docs/marking.md)",
            found=f"a refusal of c2pa ({first_line(error).rstrip('.')})",
            fix="correct the certificate, or leave it out",
        ) from None
    return made.getvalue()


def _algorithm(private: Any, path: Path) -> str:
    """Return C2PA's name of the signature that a key makes."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in _CURVES:
        return _CURVES[private.curve.name]
    raise ArgumentError(
        "key",
        expected="an ECDSA, RSA or Ed25519 key",
        found=f"another kind in {path}",
        fix="request another certificate",
    )


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArgumentError(
            name, expected="a file that can be read", found=f"{path} ({error.strerror})", fix="pass a PEM file"
        ) from None


def _unreadable(name: str, path: Path, expected: str, error: Exception) -> ArgumentError:
    found = f"something else in {path} ({first_line(error).rstrip('.')})"
    return ArgumentError(name, expected=expected, found=found, fix="convert the file with openssl")
