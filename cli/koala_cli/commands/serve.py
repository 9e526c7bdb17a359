"""``koala serve``: bundles over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from koala_bundle.errors import ArgumentError
from koala_cli.extras import require_packages
from koala_cli.files import read_mark
from koala_cli.options import RayAddress, RunTarget, SignedBy, argument, option
from koala_cli.screen import note

API_KEY_VARIABLE = "KOALA_API_KEY"
_PACKAGES = ("fastapi", "multipart", "prometheus_client", "uvicorn")


def serve(
    bundles: Annotated[list[Path], argument("BUNDLE", "Bundle folders; a request names one by its folder's name.")],
    host: Annotated[str, option("The address to listen on. Default: 127.0.0.1, this machine alone.")] = "127.0.0.1",
    port: Annotated[int, option("The port to listen on. Default: 8000.")] = 8000,
    target: RunTarget = None,
    devices: Annotated[
        list[str] | None,
        option("A GPU by index or UUID; repeatable, a worker each. Default: the first.", "--device", metavar="<GPU>"),
    ] = None,
    low_memory: Annotated[
        bool, option("Keep on the GPU only what a phase needs; this is slower.", "--low-memory")
    ] = False,
    signed_by: SignedBy = None,
    ray: RayAddress = None,
    replicas: Annotated[
        str, option("With --ray: how many draw each bundle, at least and at most. Default: 1,1.", metavar="<N,N>")
    ] = "1,1",
    replica_cpus: Annotated[float, option("With --ray: processors of each. Default: 1.", metavar="<N>")] = 1.0,
    replica_gpus: Annotated[
        float, option("With --ray: GPUs of each, or a share of one. Default: 0.", metavar="<N>")
    ] = 0.0,
    queue: Annotated[int, option("Pictures of a bundle that wait at most. Default: 64.")] = 64,
    deadline: Annotated[float, option("Seconds after which a request is given up. Default: 300.")] = 300.0,
    max_count: Annotated[int, option("Pictures per request. Default: 10.")] = 10,
    max_steps: Annotated[int, option("Denoising steps per picture. Default: 150.")] = 150,
    max_body: Annotated[int, option("Megabytes per request. Default: 32.")] = 32,
    drain: Annotated[float, option("Seconds to finish accepted work in when stopped. Default: 60.")] = 60.0,
    origins: Annotated[
        list[str] | None,
        option("A web site that may call the server, beside its own page; repeatable.", "--origin", metavar="<URL>"),
    ] = None,
    mark: Annotated[bool, option("Mark pictures as made by a model: watermark and XMP.", "--mark")] = False,
    certificate: Annotated[
        Path | None, option("With --mark: sign files with this chain of certificates (PEM).", metavar="<file>")
    ] = None,
    key: Annotated[Path | None, option("The certificate's key (PEM).", metavar="<file>")] = None,
    on_image: Annotated[
        str | None,
        option("A function that sees each picture, and may change or withhold it.", metavar="<module:function>"),
    ] = None,
    log_prompts: Annotated[bool, option("Write prompts into the log.", "--log-prompts")] = False,
) -> None:
    """Serve bundles over HTTP.

    Speaks OpenAI's images API, AUTOMATIC1111's and jobs with progress, and has a page to draw with at /. Clients must
    send the key in $KOALA_API_KEY, if it is set.
    """
    require_packages(_PACKAGES, "serve")
    from koala_serve.app import create_app
    from koala_serve.child import Opening
    from koala_serve.encoding import Finish
    from koala_serve.process import ProcessWorker
    from koala_serve.server import Server, set_up_logs
    from koala_serve.settings import Settings
    from koala_serve.worker import Worker

    settings = Settings(
        body=max_body * 2**20,
        count=max_count,
        steps=max_steps,
        deadline=deadline,
        queue=queue,
        drain=drain,
        api_key=os.environ.get(API_KEY_VARIABLE) or None,
        origins=tuple(origins or ()),
        log_prompts=log_prompts,
    )

    options = {"target": target, "low_memory": low_memory, "key": signed_by}
    finish = Finish(read_mark(mark, certificate, key, "PNG", "mark"), on_image)
    finish.hook()

    def processes(name: str, bundle: Path) -> Sequence[Worker]:
        each: Sequence[str | None] = devices or (None,)
        return [ProcessWorker(Opening(bundle, {**options, "device": device}, finish)) for device in each]

    def run(make_workers: Callable[[str, Path], Sequence[Worker]]) -> None:
        app = create_app(_named(bundles), make_workers, settings)
        set_up_logs()
        note(f"serving {', '.join(app.state.service.models)} at http://{host}:{port}")
        server = Server(app, host, port)
        server.run()
        if not server.started:
            raise typer.Exit(1)

    if ray is None:
        run(processes)
        return
    require_packages(("ray",), "ray")
    from koala_fleet.nodes import connect
    from koala_fleet.ray_serve import Scale, deploy, shut_down

    least, most = _least_and_most(replicas)
    scale = Scale(least, most, replica_cpus, replica_gpus)
    connect(ray)
    try:
        run(lambda name, bundle: deploy(name, bundle, options, scale, finish))
    finally:
        shut_down()


def _least_and_most(replicas: str) -> tuple[int, int]:
    numbers = [int(each) for each in replicas.split(",") if each.strip().isdecimal()]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise ArgumentError(
            "replicas", expected="two numbers, at least and at most", found=repr(replicas), fix="pass 1,4 for example"
        )
    return numbers[0], numbers[1]


def _named(bundles: list[Path]) -> dict[str, Path]:
    """Return the bundles by their folders' names."""
    named: dict[str, Path] = {}
    for bundle in bundles:
        name = bundle.absolute().name
        if name in named:
            raise ArgumentError(
                "BUNDLE",
                expected="folders of different names",
                found=f"{named[name]} and {bundle}",
                fix="rename one of them, or link to it under another name",
            )
        named[name] = bundle
    return named
