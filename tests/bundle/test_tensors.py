"""The table of tensors: what one component writes is what the next one reads."""

from __future__ import annotations

import pytest

from koala_bundle.manifest import Manifest
from koala_bundle.tensors import IOTensor
from tests.support.manifests import MANIFESTS


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_components_meet_by_name(manifest: Manifest) -> None:
    table, profile = manifest.components, manifest.profile
    known: dict[str, IOTensor] = {}
    for component in table:
        for tensor in component.inputs:
            assert known.setdefault(tensor.name, tensor) == tensor, "an output feeds every later input of its name"
        assert not known.keys() & {tensor.name for tensor in component.outputs}
        known |= {tensor.name: tensor for tensor in component.outputs}
    host = known.keys() - {tensor.name for component in table for tensor in component.outputs}
    rows = {"input_ids", "input_ids_2", "prompt_mask", "time_ids"}
    guidance = {"guidance_scale"} if profile.cfg else set()
    assert host == rows | guidance | {"latents", "history", "noise", "coefficients", "input_scale", "timestep"}
    for name in rows | {"hidden_states", "hidden_states_2", "text_embeds"}:
        assert known[name].shape[0] == profile.batch * (2 if profile.cfg else 1)
    assert known["latents"].shape == (profile.batch, 4, profile.height // 8, profile.width // 8)


def test_bytes_of_a_tensor() -> None:
    for dtype, size in (("float32", 96), ("float16", 48), ("int32", 96), ("uint8", 24)):
        assert IOTensor("x", dtype, (2, 3, 4)).nbytes == size
