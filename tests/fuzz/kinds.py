"""The kinds of input that strangers send, each with the code that reads it.

A kind is made once per process, in a folder of its own, and then reads one changed input per seed: ``try_seed`` returns
``accepted`` or raises KoalaError. Whatever else happens is a finding.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

from koala_bundle.engine_record import engine_folder
from koala_bundle.errors import KoalaError
from koala_bundle.files import SEAL, file_entry, seal_of
from koala_bundle.manifest import MANIFEST
from koala_bundle.targets import CPU
from tests.fuzz.bodies import Bodies
from tests.fuzz.mutate import NAMES, NUMBERS, change_bytes, change_json, dump
from tests.support.copies import copy_bundle

BUNDLE_VARIABLE = "KOALA_FUZZ_BUNDLE"
"""koala-tiny's bundle, which the parent of a worker makes: a worker then needs no torch."""
CANARY = "canary.data"
"""A file outside of the bundle: nothing may read it."""
PROMPTS = ("", "a koala", "a" * 20_000, "! " * 10_000, "é" * 20_000, "<|endoftext|>" * 1_500, "\u0301" * 20_000)


class Kind(Protocol):
    """Reads one changed input."""

    def try_seed(self, seed: int) -> str:
        """Read the input of ``seed``; return what came of it. Raises KoalaError for what is refused."""


def own_bundle(folder: Path) -> Path:
    """Copy koala-tiny's bundle beside a canary."""
    own = copy_bundle(Path(os.environ[BUNDLE_VARIABLE]), folder / "bundle")
    (folder / CANARY).write_bytes(bytes(2**16))
    return own


def replace(path: Path, data: bytes) -> None:
    """Write a file in place of another, whose other links stay as they are."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def sealed(data: Any) -> Any:
    """Return a record with its own digest, where it still is one."""
    if not isinstance(data, dict):
        return data
    try:
        return data | {SEAL: seal_of(data)}
    except (ValueError, TypeError, RecursionError):
        return data


class _NoPlans:
    """Stands in for an executor: these kinds are about what is read before plans are loaded."""

    def __init__(self, *_: object) -> None:
        self.half = "float32"

    def close(self) -> None:
        """Nothing to do."""


class Record:
    """manifest.json or engine.json, changed and in most cases sealed again: opened, and now and then inspected."""

    def __init__(self, folder: Path, file: str) -> None:
        self.bundle = own_bundle(folder)
        self.path = self.bundle / file
        self.before = self.path.read_bytes()

    def try_seed(self, seed: int) -> str:
        from koala_cli.commands.inspect import inspect
        from koala_runtime import Pipeline
        from koala_runtime.request import make_request

        draw = random.Random(seed)
        data = json.loads(self.before)
        del data[SEAL]
        changed = change_json(data, draw) if draw.random() < 0.95 else data
        text = dump(sealed(changed) if draw.random() < 0.95 else changed, draw)
        replace(self.path, text if draw.random() < 0.95 else change_bytes(self.before, draw))
        try:
            with Pipeline(self.bundle, "cpu", executor=_NoPlans) as pipe:  # type: ignore[arg-type]
                request = make_request(pipe.manifest, pipe.target, pipe._encoder, pipe.scheduler, "a koala", {})
                pipe._program(pipe._key(request, text_encoders=True))
            if draw.random() < 0.1:
                inspect(self.bundle, as_json=draw.random() < 0.05)
        finally:
            replace(self.path, self.before)
        return "accepted"


class Tokenizer:
    """tokenizer.json of a bundle whose manifest has its digest: long prompts are encoded with what is accepted."""

    def __init__(self, folder: Path) -> None:
        self.bundle = own_bundle(folder)
        self.path = self.bundle / "tokenizer/tokenizer.json"
        self.before, self.manifest = self.path.read_bytes(), json.loads((self.bundle / MANIFEST).read_bytes())

    def try_seed(self, seed: int) -> str:
        from koala_runtime import Pipeline

        draw = random.Random(seed)
        data = json.loads(self.before)
        if draw.random() < 0.2:
            self._grow(data, draw)
        data = change_json(data, draw)
        text = dump(data, draw) if draw.random() < 0.9 else change_bytes(self.before, draw)
        replace(self.path, text)
        entry = file_entry(self.path)
        self.manifest["files"]["tokenizer/tokenizer.json"] = {"sha256": entry.sha256, "size": entry.size}
        replace(self.bundle / MANIFEST, json.dumps(sealed(self.manifest)).encode())
        with Pipeline(self.bundle, "cpu", executor=_NoPlans) as pipe:  # type: ignore[arg-type]
            pipe._encoder.encode([draw.choice(PROMPTS)], weighted=draw.random() < 0.5)
            pipe._encoder.encode([draw.choice(("koala " * 3_000, "(a:1.3) " * 2_000))], weighted=draw.random() < 0.5)
        return "accepted"

    @staticmethod
    def _grow(data: Any, draw: random.Random) -> None:
        """Add what may explode: patterns, added words, long paddings."""
        kind = draw.randrange(4)
        patterns = (r"(a+)+$", r"(a|aa)*b", r"(?:x{0,1000}){0,1000}", r"\s*\s*\s*$", r"(?=(a+))\1b")
        if kind == 0:
            data["normalizer"]["normalizers"][1]["pattern"] = {"Regex": draw.choice(patterns)}
        elif kind == 1:
            data["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": draw.choice(patterns)}
        elif kind == 2:
            data["padding"]["strategy"] = {"Fixed": draw.choice((1, 2, 78, 1024, 10**9, 2**63))}
        else:
            like, first = data["added_tokens"][-1], len(data["model"]["vocab"])
            words = ["a", *(f"a_{number}" for number in range(1, draw.choice((3, 75, 20_000))))]
            data["added_tokens"] += [{**like, "id": first + at, "content": word} for at, word in enumerate(words)]


class CheckpointTokenizer:
    """vocab.json, merges.txt and the tokenizer's settings of a checkpoint, as an export reads them."""

    FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")

    def __init__(self, folder: Path) -> None:
        from tests.support.koala_tiny import CHECKPOINT

        self.folder = shutil.copytree(CHECKPOINT / "tokenizer", folder / "tokenizer")
        (folder / CANARY).write_bytes(bytes(2**16))

    def try_seed(self, seed: int) -> str:
        from koala_export.tokenizer import tokenizer_json

        draw = random.Random(seed)
        path = self.folder / draw.choice(self.FILES)
        before = path.read_bytes()
        changed = change_bytes(before, draw)
        if path.suffix == ".json" and draw.random() < 0.8:
            changed = dump(change_json(json.loads(before), draw), draw)
        elif path.suffix == ".txt" and draw.random() < 0.5:
            lines = before.decode().splitlines()
            lines[draw.randrange(len(lines))] = draw.choice((*NAMES, "a", "a b c", "a a" * 1000))
            changed = "\n".join(lines).encode("utf-8", "surrogatepass")
        path.write_bytes(changed)
        try:
            tokenizer_json(self.folder, 77, 1000)
        finally:
            path.write_bytes(before)
        return "accepted"


class Onnx:
    """The header of a plan with its right digest: what onnx's own parser finds in it must be what was looked at."""

    def __init__(self, folder: Path) -> None:
        import onnx

        self.bundle = own_bundle(folder)
        self.engines = engine_folder(self.bundle, CPU)
        self.path = self.engines / "text_encoder.onnx"
        self.before, self.record = self.path.read_bytes(), json.loads((self.engines / "engine.json").read_bytes())
        self.model = onnx.load_from_string(self.before)
        self.listed = {"text_encoder.onnx.data"}

    def try_seed(self, seed: int) -> str:
        from koala_runtime.devices.cpu import OrtEngine
        from koala_runtime.selection import open_engines

        draw = random.Random(seed)
        kind = draw.random()
        changed = self._changed_model(draw) if kind < 0.7 else self.before
        if kind > 0.5:
            changed = change_bytes(changed, draw)
        replace(self.path, changed)
        entry = file_entry(self.path)
        self.record["files"][self.path.name] = {"sha256": entry.sha256, "size": entry.size}
        replace(self.engines / "engine.json", json.dumps(sealed(self.record)).encode())
        plan = open_engines(self.bundle, "cpu").plan("text_encoder")
        assert self._locations(changed) <= self.listed, "a location that was not seen"
        OrtEngine(plan).close()
        return "accepted"

    def _changed_model(self, draw: random.Random) -> bytes:
        """Return the model with tensors that lie elsewhere, or that say that they are larger."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        tensors = [each for each in model.graph.initializer if each.external_data]
        tensor, kind = draw.choice(tensors), draw.random()
        values = {entry.key: entry for entry in tensor.external_data}
        if kind < 0.5:
            names = (*NAMES, f"../../../{CANARY}", "./text_encoder.onnx.data", "denoiser.onnx.data", "engine.json")
            values["location"].value = draw.choice(names).encode("utf-8", "replace").decode()
        elif kind < 0.6:
            other = draw.choice((model.graph.node[0].attribute.add(name="extra", type=onnx.AttributeProto.TENSOR).t,
                                 model.graph.sparse_initializer.add().values))  # fmt: skip
            other.CopyFrom(tensor)
            other.external_data[0].value = f"../../../{CANARY}"
        elif kind < 0.8:
            values[draw.choice(("offset", "length"))].value = str(draw.choice(NUMBERS))
        elif kind < 0.9:
            tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice((0, 1, 2**31, 2**62, -1))
        else:
            tensor.external_data.add(key=draw.choice(("location", "x")), value=f"../../../{CANARY}")
        return model.SerializeToString()

    @staticmethod
    def _locations(data: bytes) -> set[str]:
        """Return the locations that onnx's parser finds; none where it refuses the file."""
        import onnx

        try:
            model = onnx.load_from_string(data)
        except Exception:  # protobuf's own
            return set()
        graphs, found = [model.graph], list[Any]()
        while graphs:
            graph = graphs.pop()
            found += graph.initializer
            found += (part for each in graph.sparse_initializer for part in (each.values, each.indices))
            for attribute in (each for node in graph.node for each in node.attribute):
                graphs += [*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs]
                found += [attribute.t, *attribute.tensors]
        return {entry.value for tensor in found for entry in tensor.external_data if entry.key == "location"}


class Recipe:
    """The recipe in a PNG file, changed as JSON or as bytes: shown, and turned into the arguments of a call."""

    def __init__(self, folder: Path) -> None:
        from koala_bundle.codec import to_json
        from koala_bundle.files import write_json
        from koala_bundle.manifest import read_manifest
        from koala_runtime import Pipeline

        self.bundle = own_bundle(folder)
        self.manifest = read_manifest(self.bundle)
        with Pipeline(self.bundle, "cpu") as pipe:
            result = pipe("a red circle", seed=1, num_inference_steps=2)
        self.image, self.recipe = result.images[0], to_json(result.recipes[0])
        self.path = folder / "picture.png"
        write_json(folder / "recipe.json", self.recipe)

    def try_seed(self, seed: int) -> str:
        from koala_cli.commands.inspect import inspect
        from koala_runtime.recipe import read_recipe
        from koala_runtime.repeat import check_repeatable, repeat_call

        draw = random.Random(seed)
        changed = dump(change_json(copy.deepcopy(self.recipe), draw), draw)
        self.path.write_bytes(self._png(changed, draw))
        recipe = read_recipe(self.path)
        if draw.random() < 0.3:
            inspect(self.path, as_json=draw.random() < 0.5)
        check_repeatable(recipe, recipe.bundle, self.path, self.bundle)
        repeat_call(recipe, self.manifest)
        return "accepted"

    def _png(self, text: bytes, draw: random.Random) -> bytes:
        """Return a PNG file whose text chunk holds any bytes; damaged in some cases, and then with right checksums."""
        stream = BytesIO()
        self.image.resize((8, 8)).save(stream, "PNG")
        data = stream.getvalue()
        kind = draw.random()
        if kind < 0.6:
            chunk = _chunk(b"iTXt", b"koala\0\0\0\0\0" + text)
        elif kind < 0.8:
            chunk = _chunk(
                b"iTXt",
                b"koala\0\1\0\0\0" + zlib.compress(text * draw.choice((1, 1, 500 if len(text) < 5_000 else 2)), 9),
            )
        else:
            name = draw.choice((b"tEXt", b"zTXt", b"eXIf", b"iCCP", b"acTL", b"PLTE"))
            chunk = _chunk(name, change_bytes(text, draw))
        data = data[:33] + chunk + data[33:]
        if draw.random() < 0.2:
            size = struct.pack(">II", draw.choice((1, 2**31 - 1, 60_000)), draw.choice((1, 60_000)))
            data = data[:16] + size + data[24:]
            data = data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]
        return change_bytes(data, draw) if draw.random() < 0.2 else data


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


class Picture:
    """A picture file of ``--image`` in every format that is read, and in some that are not."""

    FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "ICO")

    def __init__(self, folder: Path) -> None:
        from PIL import Image

        self.path, self.files = folder / "picture", list[bytes]()
        pixels = Image.effect_noise((24, 16), 50).convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 6
        for name in self.FORMATS:
            stream = BytesIO()
            options = {"exif": exif} if name in ("PNG", "JPEG", "WEBP", "TIFF") else {}
            pixels.save(stream, name, **options)
            self.files.append(stream.getvalue())
        self.files.append(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")

    def try_seed(self, seed: int) -> str:
        from koala_bundle.spec import Profile
        from koala_cli.commands.run import _open
        from koala_runtime.pictures import _picture

        draw = random.Random(seed)
        self.path.write_bytes(change_bytes(draw.choice(self.files), draw))
        _picture(_open("image", self.path), Profile(64, 64))
        return "accepted"


class Signature:
    """SHA256SUMS, its signature or the key of a bundle, changed: only what was signed is accepted."""

    def __init__(self, folder: Path) -> None:
        from minisign import KeyPair

        from koala_bundle.signed import SIGNATURE, SUMS
        from koala_cli.commands.sign import sign_bundle

        self.bundle, pair = own_bundle(folder), KeyPair.generate()
        sign_bundle(self.bundle, pair.secret_key)
        self.key = folder / "key.pub"
        self.key.write_bytes(bytes(pair.public_key))
        self.paths = (self.bundle / SUMS, self.bundle / SIGNATURE, self.key)

    def try_seed(self, seed: int) -> str:
        from koala_runtime.selection import open_engines

        draw = random.Random(seed)
        path = draw.choice(self.paths)
        before = path.read_bytes()
        changed = change_bytes(before, draw)
        path.write_bytes(changed)
        try:
            open_engines(self.bundle, "cpu", key=self.key)
        finally:
            path.write_bytes(before)
        assert _without_comment(changed) == _without_comment(before), "a change that was not noticed"
        return "accepted"


def _without_comment(data: bytes) -> list[bytes]:
    """Return the lines of a signature or a key but for the first, which nothing covers."""
    lines = data.splitlines()
    return lines[1:] if lines and lines[0].startswith(b"untrusted comment: ") else lines


class LearnedWords:
    """A safetensors file of learned words: its header changed, and its size in front of it."""

    def __init__(self, folder: Path) -> None:
        import torch
        from safetensors.torch import save

        self.path = folder / "word.safetensors"
        self.before = save({"<koala>": torch.ones(2, 32), "clip_g": torch.ones(2, 48)})

    def try_seed(self, seed: int) -> str:
        from koala_export.learned_words import read_words

        draw = random.Random(seed)
        size = int.from_bytes(self.before[:8], "little")
        header, rest = self.before[8 : 8 + size], self.before[8 + size :]
        if draw.random() < 0.7:
            header = dump(change_json(json.loads(header), draw), draw)
            said = len(header) if draw.random() < 0.9 else draw.choice((0, 2**31, 2**63, len(header) + 10**6))
            data = said.to_bytes(8, "little") + header + rest
        else:
            data = change_bytes(self.before, draw)
        self.path.write_bytes(data)
        read_words([self.path], {"text_encoder": 32, "text_encoder_2": 48})
        return "accepted"


class Links:
    """A file or folder of a bundle in whose place there is a link: read only where it stays in the bundle."""

    def __init__(self, folder: Path) -> None:
        self.bundle = own_bundle(folder)
        shutil.copytree(self.bundle, folder / "other", copy_function=os.link)
        self.places = sorted(path.relative_to(self.bundle) for path in self.bundle.rglob("*"))

    def try_seed(self, seed: int) -> str:
        from koala_runtime.selection import open_engines

        draw = random.Random(seed)
        place = draw.choice(self.places)
        path, kept = self.bundle / place, self.bundle.parent / "kept"
        inside = self.bundle / f"moved-{place.name}"
        outside = (self.bundle.parent / "other" / place, Path("/etc/passwd"), Path("/dev/zero"))
        target = draw.choice((*outside, self.bundle, path, inside))
        path.rename(inside if target == inside else kept)
        try:
            path.symlink_to(target if draw.random() < 0.5 else os.path.relpath(target, path.parent))
            open_engines(self.bundle, "cpu", verify=draw.random() < 0.1)
            used = place.parts[0] != "onnx"
            assert not used or target == inside, f"{place} led to {target}"
        finally:
            path.unlink()
            (inside if target == inside else kept).rename(path)
        return "accepted"


KINDS: dict[str, Callable[[Path], Kind]] = {
    "manifest": lambda folder: Record(folder, MANIFEST),
    "engine-record": lambda folder: Record(folder, "engines/cpu/engine.json"),
    "tokenizer": Tokenizer,
    "checkpoint-tokenizer": CheckpointTokenizer,
    "onnx": Onnx,
    "recipe": Recipe,
    "picture": Picture,
    "signature": Signature,
    "learned-words": LearnedWords,
    "links": Links,
    "bodies": Bodies,
}


SHARES = {
    "manifest": 5,
    "engine-record": 6,
    "tokenizer": 3,
    "checkpoint-tokenizer": 10,
    "onnx": 3,
    "recipe": 15,
    "picture": 20,
    "bodies": 15,
    "signature": 2,
    "learned-words": 20,
    "links": 1,
}
"""Of a hundred inputs: kinds that are read in a millisecond get more."""


def outcome(kind: Kind, seed: int) -> str:
    """Return what the input of ``seed`` led to: ``accepted``, ``refused``, or a finding in words."""
    try:
        return kind.try_seed(seed)
    except KoalaError:
        return "refused"
