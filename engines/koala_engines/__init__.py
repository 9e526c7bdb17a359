"""ONNX components in, plans for a target out.

- ``build``: all components of a bundle for one target, with the reason for a rebuild, written whole or not at all
- ``cpu``: ONNX Runtime, float32; ``tensorrt``: TensorRT and TensorRT-RTX through one builder
- ``options``: what a build can be told
- ``backend``: what differs between those two
- ``targets``: what this machine can build, and why not

Knows nothing of torch or checkpoints; reads what ``koala_export`` wrote and the contract describes.
"""
