"""What a server allows, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits and habits of a server; sizes in bytes, times in seconds.

    Of a request: ``body``, ``prompt`` (characters), ``count`` (pictures), ``steps``, ``pixels`` (of a picture that
    comes with it), and ``deadline``, after which it is given up.

    Of the server: ``queue``, pictures of one model that wait at most; ``kept_bytes`` and ``kept_seconds``, of finished
    jobs whose pictures can still be fetched; ``drain``, how long it finishes what it has accepted when it is told to
    stop; ``api_key``, what clients must send; ``origins``, web sites that may call it, beside its own page;
    ``log_prompts``, write prompts into the log.
    """

    body: int = 32 * 2**20
    prompt: int = 20_000
    count: int = 10
    steps: int = 150
    pixels: int = 32 * 10**6
    deadline: float = 300.0
    queue: int = 64
    kept_bytes: int = 256 * 2**20
    kept_seconds: float = 3600.0
    drain: float = 60.0
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    log_prompts: bool = False
