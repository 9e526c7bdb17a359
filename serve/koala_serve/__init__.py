"""Bundles as an HTTP server: one queue per bundle, whatever protocol a client speaks.

- ``image_request``: what a client asks for; ``checking``: refused before it waits; ``job``: on its way
- ``model``: a bundle's queue, and the batches that are drawn from it; ``batching``: requests as rows of a batch
- ``worker``: what draws; ``process``: one that is a process of its own, ``child``: what runs in it; ``encoding``: files
- ``service``: all models, and finished jobs; ``app``: the application; ``server``: runs it, until a signal
- ``routes``: OpenAI's images API, AUTOMATIC1111's, jobs, health, and the page, which lies in ``page``
- ``gate``: keys, origins and the log of requests; ``replies``, ``errors``: what a client is told when it is refused
- ``settings``: all limits; ``metrics``: what Prometheus reads
"""
