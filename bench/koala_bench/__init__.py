"""The speed of a bundle beside PyTorch's.

- ``backends``: what a backend is; ``ours``, ``theirs``: the backends; ``registry``: finds them by name
- ``runner``: measures all of them in turn, ``processes``: each in a process of its own, which runs ``worker``
- ``sweep``: the same over steps, batches or sizes; ``hardware``: what it ran on
- ``results``: the figures; ``tables``, ``plot``: how to show them; ``report``: as files
"""
