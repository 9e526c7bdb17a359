"""Weights of an ONNX file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from koala_bundle.places import inside


def read_values(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    """Return the values of a weight of an ONNX file in ``folder``. Raises BundleError for one stored elsewhere.

    onnx's own reader refuses files that are links, as those of a hub cache are.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return onnx.numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    with inside(folder, place["location"], "export the bundle again").open("rb") as stream:
        stream.seek(int(place.get("offset", 0)))
        data = stream.read(math.prod(tensor.dims) * dtype.itemsize)
    return np.frombuffer(data, dtype).reshape(tuple(tensor.dims))
