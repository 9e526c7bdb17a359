"""Marks, read back by other programs: invisible-watermark's decoder, Pillow, exiftool and c2pa-python."""

from __future__ import annotations

import datetime
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from koala_cli.main import run_app
from koala_runtime import ArgumentError, Mark, Pipeline, Recipe, WithheldError, encode_picture, read_recipe, to_png
from koala_runtime.marking.mark import check_mark
from koala_runtime.marking.metadata import SOURCE_TYPE
from koala_runtime.marking.watermark import add_watermark, message_bits, read_watermark
from tests.docs.test_site import ROOT

SHAPE = "koala-700m-like"
FORMATS = ("PNG", "JPEG", "WEBP")


def sample(width: int, height: int, column: int = 0) -> NDArray[np.uint8]:
    """Return a picture of koala-tiny, enlarged."""
    with Image.open(ROOT / "examples/koala-tiny/samples.png") as sheet:
        side = sheet.width // 4
        tile = sheet.convert("RGB").crop((column * side, 0, (column + 1) * side, sheet.height // 2))
    return np.asarray(tile.resize((width, height), Image.Resampling.LANCZOS))


def through(pixels: NDArray[np.uint8], format: str, **options: Any) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return np.asarray(Image.open(stream).convert("RGB"))


@pytest.mark.parametrize(("width", "height"), [(512, 512), (387, 513), (301, 257)])
@pytest.mark.parametrize("column", [0, 1, 2, 3])
def test_the_published_decoder_reads_the_watermark(width: int, height: int, column: int) -> None:
    from diffusers.pipelines.stable_diffusion_xl.watermark import WATERMARK_BITS
    from imwatermark import WatermarkDecoder

    plain = sample(width, height, column)
    marked = add_watermark(plain)
    assert not read_watermark(plain).found
    error = np.mean((marked.astype(float) - plain) ** 2)
    assert 10 * np.log10(255**2 / error) > 33.5
    # JPEG costs bits at widths whose blocks its own do not line up with.
    for pixels, least in ((marked, 48), (through(marked, "PNG"), 48), (through(marked, "JPEG", quality=90), 41)):
        theirs = WatermarkDecoder("bits", 48).decode(np.ascontiguousarray(pixels[..., ::-1]), "dwtDct")
        assert message_bits().tolist() == [bool(bit) for bit in WATERMARK_BITS]
        assert (theirs == message_bits()).sum() >= least
        ours = read_watermark(pixels)
        assert ours.bits.tolist() == theirs.tolist()
        assert ours.found and ours.chance < 1e-6 and ours.certainty > 0.3


def test_small_pictures() -> None:
    assert read_watermark(add_watermark(sample(128, 128))).matches == 48
    with pytest.raises(ArgumentError, match="48 whole blocks of 8 x 8 pixels"):
        add_watermark(sample(48, 48))


@pytest.fixture(scope="module")
def pipeline(bundle: Callable[..., Path]) -> Iterator[Pipeline]:
    with Pipeline(bundle(SHAPE), "cpu") as opened:
        yield opened


def draw(pipeline: Pipeline, **arguments: Any) -> Any:
    return pipeline("a cat", num_inference_steps=1, seed=0, **arguments)


def test_a_marked_call_has_the_watermark_in_its_pixels(pipeline: Pipeline) -> None:
    plain, marked = draw(pipeline), draw(pipeline, mark=True)
    assert np.array_equal(np.asarray(marked.images[0]), add_watermark(np.asarray(plain.images[0])))
    assert [plain.recipes[0].mark, marked.recipes[0].mark] == [False, True]
    floats = draw(pipeline, mark=True, output_type="np").images
    assert np.array_equal(np.rint(floats[0] * 255), np.asarray(marked.images[0]))


def test_a_hook_sees_each_picture_before_it_is_marked(pipeline: Pipeline) -> None:
    plain, seen = draw(pipeline), []

    def check(picture: Image.Image, recipe: Recipe) -> Image.Image:
        seen.append((picture.tobytes(), recipe))
        return Image.new("RGB", picture.size, "grey")

    made = draw(pipeline, mark=True, on_image=check)
    assert seen == [(plain.images[0].tobytes(), made.recipes[0])]
    grey = np.asarray(Image.new("RGB", plain.images[0].size, "grey"))
    assert np.array_equal(np.asarray(made.images[0]), add_watermark(grey))


@pytest.mark.parametrize(
    "error", [WithheldError("picture", expected="no cat", found="a cat", fix="ask for a dog"), KeyError("own")]
)
def test_a_hook_withholds_by_raising(pipeline: Pipeline, error: Exception) -> None:
    def check(picture: Image.Image, recipe: Recipe) -> Image.Image:
        raise error

    with pytest.raises(type(error)) as caught:
        draw(pipeline, on_image=check)
    assert caught.value is error
    assert draw(pipeline).images, "the pipeline stays usable"


def test_what_cannot_be_marked_or_checked(pipeline: Pipeline) -> None:
    for arguments in ({"mark": True}, {"on_image": lambda picture, recipe: picture}):
        with pytest.raises(ArgumentError, match="pass pil or np"):
            draw(pipeline, output_type="latent", **arguments)
    with pytest.raises(ArgumentError, match="one that returned NoneType"):
        draw(pipeline, on_image=lambda picture, recipe: None)
    with pytest.raises(ArgumentError, match="one that returned 8 x 8"):
        draw(pipeline, on_image=lambda picture, recipe: picture.resize((8, 8)))


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_is_read_by_pillow_and_exiftool(pipeline: Pipeline, format: str, tmp_path: Path) -> None:
    made = draw(pipeline, mark=True)
    data = encode_picture(made.images[0], made.recipes[0], format)
    assert data == encode_picture(made.images[0], made.recipes[0], format, Mark())
    path = tmp_path / f"koala.{format.lower()}"
    path.write_bytes(data)
    with Image.open(path) as image:
        packet = image.info["xmp"] if format != "PNG" else image.info["XML:com.adobe.xmp"].encode()
    assert f"DigitalSourceType>{SOURCE_TYPE}<".encode() in packet
    if shutil.which("exiftool"):
        command = ["exiftool", "-json", "-XMP-iptcExt:DigitalSourceType", str(path)]
        (read,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert read["DigitalSourceType"] in (SOURCE_TYPE, "Trained Algorithmic Media")


def test_a_plain_picture_carries_no_mark(pipeline: Pipeline) -> None:
    plain = draw(pipeline)
    assert b"adobe" not in to_png(plain.images[0], plain.recipes[0])
    with pytest.raises(ArgumentError, match="expected PNG, JPEG or WebP for a marked picture, found BMP"):
        encode_picture(plain.images[0], plain.recipes[0], "BMP", Mark())


def test_the_command_repeats_a_marked_picture(bundle: Callable[..., Path], tmp_path: Path) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    command = ["run", str(bundle(SHAPE)), "--target", "cpu"]
    assert run_app([*command, "a cat", "--steps", "1", "--mark", "--output", str(first)]) == 0
    assert read_recipe(first).mark
    assert run_app([*command, "--like", str(first), "--output", str(again)]) == 0
    assert again.read_bytes() == first.read_bytes()
    assert run_app([*command, "--like", str(first), "--output", str(tmp_path / "again.bmp")]) == 2
    assert not (tmp_path / "again.bmp").exists()


def make_chain(folder: Path) -> Mark:
    """Write a certificate of C2PA's profile, that of the authority that issued it, and the key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(common: str) -> x509.Name:
        pairs = ((NameOID.COUNTRY_NAME, "BE"), (NameOID.ORGANIZATION_NAME, "Koalas"), (NameOID.COMMON_NAME, common))
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])

    def usage(**given: bool) -> x509.KeyUsage:
        names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
        every = dict.fromkeys([*names.split(), "crl_sign", "encipher_only", "decipher_only"], False)
        return x509.KeyUsage(**(every | given))

    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    chain = []
    for subject, owner, is_root in ((name("signer"), key, False), (name("root"), root_key, True)):
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
        made = (
            x509.CertificateBuilder(name("root"), subject, owner.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(is_root, None), True)
            .add_extension(usage(key_cert_sign=True) if is_root else usage(digital_signature=True), True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(owner.public_key()), False)
            .add_extension(issuer, False)
        )
        if not is_root:
            made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        chain.append(made.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "chain.pem").write_bytes(b"".join(chain))
    (folder / "key.pem").write_bytes(key.private_bytes(*pem))
    (folder / "other.pem").write_bytes(root_key.private_bytes(*pem))
    return Mark(folder / "chain.pem", folder / "key.pem")


@pytest.mark.parametrize("format", FORMATS)
def test_credentials_are_valid(pipeline: Pipeline, format: str, tmp_path: Path) -> None:
    c2pa = pytest.importorskip("c2pa")
    made = draw(pipeline, mark=True)
    data = encode_picture(made.images[0], made.recipes[0], format, make_chain(tmp_path))
    root = (tmp_path / "chain.pem").read_text().partition("-----END CERTIFICATE-----")[2]
    for anchors, state in ((None, "Valid"), (root, "Trusted")):
        trust = {"trust": {"trust_anchors": anchors}} if anchors else {"verify": {"verify_trust": False}}
        with (
            c2pa.Context(c2pa.Settings.from_dict(trust)) as context,
            c2pa.Reader(f"image/{format.lower()}", io.BytesIO(data), context=context) as reader,
        ):
            assert reader.get_validation_state() == state, reader.get_validation_results()
            (action,) = reader.get_active_manifest()["assertions"][0]["data"]["actions"]
    assert action["action"] == "c2pa.created" and action["digitalSourceType"] == SOURCE_TYPE
    assert action["softwareAgent"]["name"] == "koala-trt"
    with Image.open(io.BytesIO(data)) as image:
        if format == "PNG":
            assert image.tobytes() == made.images[0].tobytes()
    changed = bytearray(data)
    changed[-len(data) // 3] ^= 1
    with c2pa.Reader(f"image/{format.lower()}", io.BytesIO(bytes(changed))) as reader:
        assert reader.get_validation_state() == "Invalid"


def test_what_cannot_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = make_chain(tmp_path)
    chain, key, junk = mark.certificate, mark.key, tmp_path / "junk.pem"
    junk.write_text("junk")
    cases = (
        (Mark(chain), "key: expected a file beside the certificate, found none"),
        (Mark(tmp_path / "no.pem", key), "certificate: expected a file that can be read, found .*no.pem"),
        (Mark(junk, key), "certificate: expected PEM certificates, the signer's own first, found something else"),
        (Mark(chain, junk), "key: expected a private key in PEM, without a password, found something else"),
        (Mark(chain, tmp_path / "other.pem"), "key: expected the private key of .*chain.pem, found another one"),
    )
    for wrong, sentence in cases:
        with pytest.raises(ArgumentError, match=sentence):
            check_mark(wrong, "PNG")
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ArgumentError, match=r"found none installed; pip install koala-trt\[mark\]"):
        check_mark(mark, "PNG")


def test_nothing_is_imported_without_a_certificate() -> None:
    code = (
        "import sys; from koala_runtime import Pipeline, encode_picture; import koala_runtime.marking.mark; "
        "print({'c2pa', 'cryptography', 'imwatermark', 'cv2', 'pywt'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "set()\n"
