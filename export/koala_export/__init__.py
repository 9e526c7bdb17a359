"""A diffusers checkpoint in, a bundle of ONNX components out.

- ``source``: a folder, a hub name or a preset becomes a Checkpoint
- ``checkpoint``: the folder of a checkpoint; ``presets``, ``random_weights``: known shapes without a download
- ``modules``: the torch modules that are traced, the sampler folded into the denoiser
- ``trace``: one module to one clean ONNX file; ``gate``: does it compute what PyTorch computes?
- ``bundle``: all components, the tokenizers and the manifest, written whole or not at all

Knows nothing of compilers or GPUs; ``koala_engines`` reads what is written here.
"""
