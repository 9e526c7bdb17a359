"""The server's own errors, beside those of a pipeline; each has the HTTP status that tells it."""

from __future__ import annotations

from typing import ClassVar

from koala_bundle.errors import KoalaError


class ServeError(KoalaError):
    """Base of them. ``retry_after``: seconds after which a client may try again, None if that does not help."""

    status: ClassVar[int] = 500
    retry_after: int | None = None


class UnauthorizedError(ServeError):
    """The API key is missing or wrong."""

    status = 401


class OriginError(ServeError):
    """A web page of another site calls the server."""

    status = 403


class UnknownModelError(ServeError):
    """A request names a model that is not served."""

    status = 404


class UnknownJobError(ServeError):
    """There is no such job, or not any more."""

    status = 404


class CancelledError(ServeError):
    """The client gave the request up."""

    status = 409


class TooLargeError(ServeError):
    """A request has more bytes than the server reads."""

    status = 413


class QueueFullError(ServeError):
    """There is no room in the queue."""

    status = 429

    def __init__(self, waiting: int, bound: int, retry_after: int) -> None:
        self.retry_after = retry_after
        super().__init__(
            "the queue",
            expected=f"room among {bound} pictures",
            found=f"{waiting} waiting",
            fix=f"try again in {retry_after} s",
        )


class FaultError(ServeError):
    """The server failed."""

    status = 500


class StoppingError(ServeError):
    """The server finishes what it has accepted, and takes nothing more."""

    status = 503
    retry_after = 5


class DeadlineError(ServeError):
    """The pictures were not there in time."""

    status = 504
