"""Tensors inside a component beside PyTorch's: figures, and Polygraphy's verdict by the bounds of the export's gate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from polygraphy.comparator import Comparator, CosineSimilarityCompareFunc, RunResults, SimpleCompareFunc
from polygraphy.logger import G_LOGGER

from koala_bundle.spec import Profile
from koala_export.gate import BOUNDS
from koala_verify.layer_runners import REFERENCE
from koala_verify.torch_values import Operator


class GraphTensor(NamedTuple):
    """A result of a node.

    ``rounded``: it comes from rounded values, pixels, of which one may differ by a level. ``minuends`` are what a
    difference was made of: it has their errors, and may be much smaller.
    """

    name: str
    operator: str
    rounded: bool
    minuends: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layer:
    """One tensor of an ONNX graph beside PyTorch's.

    ``part`` is the component it is in, ``tensor`` its name there, ``operator`` what gives it. ``module`` and
    ``weights`` are the checkpoint's (``torch_values.Operator``). ``error`` is the largest difference, divided by the
    reference's largest value. Both figures are NaN where they cannot be computed.
    """

    part: str
    tensor: str
    operator: str
    module: str
    weights: tuple[str, ...]
    error: float
    cosine: float
    passed: bool

    @property
    def badness(self) -> float:
        """Return the error, infinity if there is none to tell."""
        return math.inf if math.isnan(self.error) else self.error

    def __str__(self) -> str:
        weights = f" with {' and '.join(self.weights)}" if self.weights else ""
        return f"{self.tensor} ({self.module or 'around the model'}{weights})"


@dataclass(frozen=True)
class Layers:
    """The tensors of a component that were compared, in the order in which they are computed.

    ``inside`` counts the floating-point tensors that were not: steps inside one of PyTorch's operators, such as a
    product before its bias is added. PyTorch has no value of these; a mistake there shows in the operator's result.
    """

    bundle: str
    checkpoint: str
    component: str
    target: str
    profile: Profile
    layers: tuple[Layer, ...]
    inside: int

    @property
    def passed(self) -> bool:
        """Whether every tensor is within its bounds."""
        return self.first is None

    @property
    def first(self) -> Layer | None:
        """The first tensor that is out of bounds: those after it inherit its error."""
        return next((layer for layer in self.layers if not layer.passed), None)

    def worst(self, count: int = 10) -> list[Layer]:
        """Return the tensors with the largest errors, one of each module of the checkpoint."""
        found: dict[str, Layer] = {}
        for layer in sorted(self.layers, key=lambda each: -each.badness):
            found.setdefault(layer.module, layer)
        return [*found.values()][:count]


def judge(
    part: str, portion: Sequence[GraphTensor], operators: Mapping[str, Operator], results: RunResults, precision: str
) -> Iterator[Layer]:
    """Yield each tensor with Polygraphy's verdict, by the bounds of the export's gate."""
    largest_error, least_cosine = BOUNDS[precision]
    wanted = results[REFERENCE][0]
    scales = {name: float(np.abs(value[np.isfinite(value)]).max(initial=0)) for name, value in wanted.items()}
    # How much larger the errors of a difference are, in relation to it, than those of what it was made of.
    growth = {t.name: 1.0 for t in portion}
    for each in portion:
        if each.minuends and scales[each.name]:
            larger = max(scales.get(name, 0.0) for name in each.minuends)
            growth[each.name] = max(1.0, larger / scales[each.name])
    limits = {t.name: (largest_error * growth[t.name] + t.rounded / 255) * scales[t.name] for t in portion}
    measures = [
        SimpleCompareFunc(check_error_stat="max", atol=limits, rtol=0.0, infinities_compare_equal=True),
        CosineSimilarityCompareFunc({name: 1 - (1 - least_cosine) * times**2 for name, times in growth.items()}),
    ]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(all="ignore"):
        outcomes = Comparator.compare_accuracy(results, compare_func=measures)
    ((differences,),), ((cosines,),) = (outcome.values() for outcome in outcomes)
    for name, operator, *_ in portion:
        origin, difference, cosine = operators[name], differences[name], cosines[name]
        yield Layer(
            part=part,
            tensor=name,
            operator=operator,
            module=origin.module,
            weights=origin.weights,
            error=getattr(difference, "max_absdiff", math.nan) / (scales[name] or 1.0),
            cosine=getattr(cosine, "cosine_similarity", math.nan),
            passed=bool(difference) and bool(cosine),
        )
