"""Proof of a bundle against its checkpoint.

- ``verify``: compares every component and whole pictures, PyTorch against ONNX against engines
- ``comparison``: the figures and their bounds; ``page``: the same as one HTML file
- ``reference``: diffusers' pictures; ``single``: runs single components of a bundle;
  ``lora_reference``: diffusers' own sum of LoRAs
- ``layers``: finds where a component goes wrong; ``torch_values``: what PyTorch computes inside it, the reference
- ``layer_runners``: both sides in Polygraphy; ``layer_comparison``: its verdict on each tensor
- ``pixels``, ``perceptual``: how far apart two pictures are, by pixel and to neural networks
"""
