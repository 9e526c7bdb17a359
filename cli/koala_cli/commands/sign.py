"""``koala sign``: a signature over a bundle, for ``--key`` of other commands and for the program minisign."""

from __future__ import annotations

import getpass
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from koala_bundle import __version__
from koala_bundle.errors import ArgumentError
from koala_bundle.files import read_bytes, write_atomic
from koala_bundle.integrity import check_bundle
from koala_bundle.places import refuse_link_out
from koala_bundle.signed import SIGNATURE, SUMS, format_sums, record_digests
from koala_bundle.swap import real_path, whole
from koala_cli.options import argument, option
from koala_cli.screen import note, say
from koala_runtime.signature import require_minisign

if TYPE_CHECKING:
    from minisign import SecretKey

_LONGEST_KEY = 10_000  # bytes of a key's file


def sign(
    bundle: Annotated[Path | None, argument("BUNDLE", "The bundle folder.")] = None,
    key: Annotated[Path | None, option("The secret key that signs, a minisign key file.", metavar="<file>")] = None,
    generate: Annotated[
        Path | None,
        option("Make a secret key in this new file, and its public key beside it (.pub).", metavar="<file>"),
    ] = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="With --generate: keep the secret key without a password.")
    ] = False,
) -> None:
    """Sign a bundle, or make the keys for it.

    The signature covers manifest.json and every engine.json, and so, by their digests, every file. Sign after koala
    engines. Others check it with koala verify --key, koala run --signed-by, or minisign.
    """
    require_minisign()
    if generate is not None:
        if bundle is not None or key is not None:
            raise ArgumentError(
                "generate", expected="neither BUNDLE nor --key beside it", found="one", fix="make the keys first"
            )
        _generate(generate, no_password)
        return
    if bundle is None or key is None:
        missing = "bundle" if bundle is None else "key"
        raise ArgumentError(missing, expected="a bundle and a secret key", found="none", fix="see `koala sign --help`")
    bundle = whole(real_path(bundle))
    check_bundle(bundle)
    with _read_secret_key(key) as secret:
        names = sign_bundle(bundle, secret)
    say(f"{bundle}: signed {', '.join(names)}")


def sign_bundle(bundle: Path, secret: SecretKey) -> list[str]:
    """Write SHA256SUMS and its signature into ``bundle``; return what was signed."""
    digests = record_digests(bundle)
    content, names = format_sums(digests), [*digests]
    what = f"koala-trt {__version__} bundle {digests[names[0]][:16]}: {', '.join(names)}"
    comment = f"timestamp:{int(time.time())}\tfile:{SUMS}\thashed\t{what}"
    signature = secret.sign(content, trusted_comment=comment[:_LONGEST_COMMENT])
    for name, data in ((SUMS, content), (SIGNATURE, bytes(signature) + b"\n")):
        refuse_link_out(bundle / name, bundle, "remove the link")
        write_atomic(bundle / name, data)
    return names


_LONGEST_COMMENT = 8000
"""Characters; minisign takes 8192 with its prefix."""


def _generate(path: Path, no_password: bool) -> None:
    from minisign import KeyPair

    public = path.with_suffix(".pub")
    for each in (path, public):
        if each.exists() or each.is_symlink() or path == public:
            raise ArgumentError(
                "generate", expected="a new file that does not end in .pub", found=str(each), fix="choose another name"
            )
    if not path.parent.is_dir():
        raise ArgumentError(
            "generate", expected="a file in a folder that exists", found=str(path), fix=f"make {path.parent} first"
        )
    pair = KeyPair.generate()
    with pair.secret_key as secret:
        if not no_password and (password := _new_password()):
            secret.encrypt(password)
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(number, "wb") as stream:
            stream.write(bytes(secret) + b"\n")
    write_atomic(public, bytes(pair.public_key) + b"\n")
    say(f"{path}: the secret key; whoever has it can sign in your name")
    say(f"{public}: the public key, for those who check: {pair.public_key.to_base64().decode()}")


def _new_password() -> str:
    if not sys.stdin.isatty():
        raise ArgumentError(
            "no_password",
            expected="a terminal on which a password can be typed",
            found="none",
            fix="pass --no-password and keep the file in a safe place, or run it in a terminal",
        )
    password = getpass.getpass("Password of the new key (empty: none): ")
    if password != getpass.getpass("The same password again: "):
        raise ArgumentError("generate", expected="the same password twice", found="two", fix="try again")
    return password


def _read_secret_key(path: Path) -> SecretKey:
    """Return a minisign secret key, without its password. Raises ArgumentError."""
    from minisign import Error, SecretKey

    fix = "pass what `koala sign --generate` or `minisign -G` wrote"
    try:
        secret = SecretKey.from_bytes(read_bytes(path, _LONGEST_KEY, fix))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ArgumentError(
            "key",
            expected="a minisign secret key",
            found=f"{path} ({reason[:1].lower()}{reason[1:]})",
            fix=fix,
        ) from None
    if not secret.is_encrypted():
        return secret
    if not sys.stdin.isatty():
        raise ArgumentError(
            "key",
            expected="a terminal on which its password can be typed, or a key without one",
            found=f"{path}, which has a password",
            fix="run it in a terminal, or remove the password of a copy with `minisign -C -W -s COPY`",
        )
    note(f"{path} has a password.")
    try:
        secret.decrypt(getpass.getpass("Password: "))
    except Error as error:
        raise ArgumentError("key", expected="its password", found=str(error), fix="try again") from None
    return secret
