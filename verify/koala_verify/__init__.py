"""Proof of a bundle against its checkpoint.

- ``verify``: every component and whole pictures, PyTorch against ONNX against plans; ``page``: as one HTML file
- ``reference``: diffusers' own pipeline; ``pixels``, ``likeness``: how far apart two pictures are
"""
