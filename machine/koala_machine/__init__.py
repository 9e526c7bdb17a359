"""What this machine has: its NVIDIA driver and GPU, and TensorRT's libraries.

- ``driver``: the driver's version and the first visible GPU
- ``support``: which wheel runs a target, with which driver, on which GPUs
- ``tensorrt``: imports the library of a target, and gives it a logger

``koala_bundle`` describes; this package asks. Neither imports torch or anything above it.
"""
