"""The ways to run a checkpoint that ``koala bench`` compares.

- ``base``: the protocol of a backend, the workload that all of them run, the phases of a picture
- ``koala``: this project's runtime; ``diffusers``, ``optimum``, ``openvino``: other projects
- ``registry``: finds a backend by name, and says which can run here
"""
