"""Devices and the engines that run on them, behind the two protocols of ``base``.

- ``cpu``: the processor, with ONNX Runtime
- ``cuda``: an NVIDIA GPU through the CUDA driver API; ``tensorrt``: plans of TensorRT and TensorRT-RTX on it
- ``onnx_cuda``: ONNX Runtime on such a GPU
- ``simulated``: a GPU in software on which mistakes show, for tests

Nothing here knows bundles or pictures.
"""
