"""ONNX components in, plans for a target out.

- ``build``: all components of a bundle for one target, with the reason for a rebuild, written whole or not at all
- ``compiler``: what a compiler is; ``opening``: which one builds for a target
- ``cpu``: ONNX Runtime, float32; ``cuda``: ONNX Runtime on a GPU, which needs no compiling;
  ``tensorrt``, ``rtx``: NVIDIA's two compilers, on what ``trt_builder`` shares
- ``kernels``: reads a plan: its kernels, its scratch memory, what got lost; ``progress``: TensorRT's own progress
- ``weights``: reads those of an ONNX file; ``options``: the choices of a build;
  ``availability``: what this machine can build, and why not

Knows nothing of torch or checkpoints; reads what ``koala_export`` wrote and ``koala_bundle`` describes.
"""
