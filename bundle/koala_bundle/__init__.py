"""What a bundle is: the ground floor, which every other package stands on. Standard library only.

- ``spec``: what a model is (``ModelSpec``) and the static profile it is compiled for
- ``schedulers``: a scheduler as diffusers saves it; ``scheduler_keys``: which keys and values each class may have
- ``tensors``: the one table of tensors that every package reads
- ``targets``: the one table of targets: what compiles and what runs a plan
- ``manifest``: manifest.json; ``engine_record``: engines/<target>/engine.json
- ``counts``: how much work a component is
- ``files``: digests, atomic writes; ``swap``: folders that are built beside their place; ``checked``: files read whole
- ``codec``: dataclasses to JSON and back
- ``errors``: every error that is raised on purpose
"""

import os

__version__ = "0.1.0"

# ONNX Runtime 1.31 reports to its makers unless it is told not to before it is imported; this package comes first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
