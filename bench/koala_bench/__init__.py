"""The speed of a bundle beside PyTorch's, ONNX Runtime's and OpenVINO's; and what fewer steps cost.

- ``backends``: the ways to run a checkpoint that are compared
- ``runner``: measures all of them in turn; ``processes``: each in a process of its own, which runs ``worker``
- ``sweep``: the same over steps, batches or sizes; ``hardware``: the machine; ``cost``: the work of a picture
- ``samplers``: the quality of pictures by sampler and number of steps
- ``results``: the schema of results.json; ``tables``, ``plot``: how to show it; ``report``: as files; ``readme``: the
  README's table
"""
