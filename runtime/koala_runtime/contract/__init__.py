"""What the exporter, the engine builders and the runtime share; standard library only.

- ``spec``: what a model is and the static profile it is compiled for; ``configs``: read from a checkpoint's files
- ``io``: the one table of tensors that every stage reads
- ``manifest``: manifest.json and engine.json
- ``files``: digests, atomic writes, staged folders
- ``gpu``: which GPU is here
- ``errors``: the error tree
"""
