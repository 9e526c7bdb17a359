"""Frozen dataclasses to JSON and back; what does not fit is named by its field."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import replace
from functools import reduce
from operator import getitem
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koala_bundle.codec import CodecError, from_json, to_json
from koala_bundle.engine_record import EngineRecord
from koala_bundle.manifest import Manifest
from tests.support.manifests import KEY, MANIFESTS, RECORD

MANIFEST: Any = to_json(MANIFESTS[0])
HUGE = "sampling.guidance_scale: expected float, found int 1" + "0" * 75  # what was found is cut at 80 characters


@pytest.mark.parametrize("document", [*MANIFESTS, RECORD, replace(RECORD, key=replace(KEY, gpu=None))])
def test_json_and_back(document: Manifest | EngineRecord) -> None:
    assert from_json(type(document), json.loads(json.dumps(to_json(document)))) == document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["spec", "unet", "mid_block"], ..., "spec.unet.mid_block: expected a value, found nothing"),
        (["profile", "depth"], 1, "profile.depth: expected no such field, found a value"),
        (["schema_version"], True, "schema_version: expected int, found bool True"),
        (["sampling", "guidance_scale"], "7", "sampling.guidance_scale: expected float, found str '7'"),
        (["sampling"], None, "sampling: expected an object, found NoneType None"),
        (["files", "onnx/a.onnx", "size"], None, "files.onnx/a.onnx.size: expected int, found NoneType None"),
        (["components"], {}, "components: expected a list, found dict {}"),
        (["components", 2, "inputs", 0, "name"], 4, "components[2].inputs[0].name: expected str, found int 4"),
        pytest.param(["sampling", "guidance_scale"], 10**400, HUGE, id="10^400"),
    ],
)
def test_json_of_another_shape_is_told_by_field(path: list[Any], value: Any, message: str) -> None:
    data = deepcopy(MANIFEST)
    (holder := reduce(getitem, path[:-1], data))[path[-1]] = value
    if value is ...:
        del holder[path[-1]]
    with pytest.raises(CodecError, match=f"^{re.escape(message)}$"):
        from_json(Manifest, data)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
any_json = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(data=any_json, section=st.sampled_from(sorted(MANIFEST)))
def test_arbitrary_json_raises_codec_errors_only(data: Any, section: str) -> None:
    for cls in (Manifest, EngineRecord):
        with pytest.raises(CodecError, match=r": expected .*, found "):
            from_json(cls, data)
    try:
        from_json(Manifest, MANIFEST | {section: data})
    except CodecError as error:
        assert error.field.startswith(section)
