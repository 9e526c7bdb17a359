"""Proof of a bundle against its checkpoint, and its speed beside PyTorch's.

- ``verify``: every component and whole pictures, PyTorch against ONNX against plans; ``page``: as one HTML file
- ``backends``: what is measured; ``worker``: the process of one; ``runner``: all of them in turn
- ``machine``: what it ran on; ``results``, ``plot``: the figures and how to show them
"""
