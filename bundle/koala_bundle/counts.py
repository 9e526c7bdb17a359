"""How much work a component is, counted from its graph, and the time that it takes at the least on a known GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Product:
    """``count`` operations of one kind, size and dtype: convolutions, products of matrices or attentions.

    ``flops`` is floating-point operations of one, a multiplication and an addition being two; ``nbytes`` is what one
    reads and writes, weights included.
    """

    op_type: str
    dtype: str
    flops: int
    nbytes: int
    count: int


@dataclass(frozen=True)
class Counts:
    """A graph in figures; one run of the component, of whatever batch it was exported for."""

    nodes: int
    weight_bytes: int
    attentions: int
    norms: int
    products: tuple[Product, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations of all products; the rest of a graph is bound by memory."""
        return sum(product.flops * product.count for product in self.products)

    @property
    def half_share(self) -> float:
        """Share of the operations that work on float16, 0 to 1; 0 where there are none."""
        half = sum(product.flops * product.count for product in self.products if product.dtype == "float16")
        return half / self.flops if self.flops else 0.0

    def roofline_seconds(self, gpu: Roofline) -> float:
        """Return the least time of one run: each product bound by arithmetic or by memory, all else fused into them.

        The roofline model: Williams, Waterman and Patterson, CACM 52 (2009).
        """
        return sum(
            product.count * max(product.flops / gpu.flops_per_second, product.nbytes / gpu.bytes_per_second)
            for product in self.products
        )


NOTHING = Counts(0, 0, 0, 0, ())


@dataclass(frozen=True)
class Roofline:
    """Peak rates of a GPU, from its maker's data sheet: dense float16 with float16 accumulation, and memory.

    GeForce adds up in float32 at half that rate; a plan may do either, so that only the faster one is a bound.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float


ROOFLINES = (
    Roofline("H200", 989e12, 4.8e12),  # H200 data sheet: 1,979 TFLOPS with sparsity, so half of it dense
    Roofline("RTX 4090", 330.3e12, 1.008e12),  # Ada architecture whitepaper, appendix A
    Roofline("RTX 3060 Ti", 64.8e12, 0.448e12),  # Ampere GA104, of 38 multiprocessors at 1.665 GHz
)
