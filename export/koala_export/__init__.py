"""A diffusers checkpoint in, a bundle of ONNX components out.

- ``source``: a folder, a hub name or a preset becomes a Checkpoint
- ``checkpoint``: the folder of a checkpoint; ``weights``: which of its files are loaded; ``learned_words``: added ones
- ``lora``: LoRAs added to the weights; ``lora_file`` reads them, ``lora_names`` has what layers are called there
- ``libraries``: configurations as diffusers and transformers read them; ``fields``, ``configs``: to a specification
- ``presets``, ``random_weights``: known shapes without a download
- ``modules``: the torch modules that are traced; ``euler``: the sampler's step, folded into the denoiser
- ``module_passes``: passes over a torch model before the trace; ``passes``: passes over the traced graph
- ``trace``: a module becomes a graph, and a graph an ONNX file; ``capture`` and ``simplify`` are its two halves
- ``gate``: compares the ONNX files of a component with PyTorch
- ``reuse``: components and engines of earlier bundles, taken over where they are the same
- ``options``: what an export is asked for, and what that comes to for a checkpoint
- ``other_models``: VAEs that are not the checkpoint's own
- ``exporter``: all components, the tokenizers and the manifest, written whole or not at all

Knows nothing of compilers or GPUs; ``koala_engines`` reads what is written here.
"""
