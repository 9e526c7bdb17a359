"""One server of koala-tiny, and the clients that speak to it: openai's own, an A1111 library, curl, plain HTTP."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image

from koala_runtime import Pipeline, read_recipe
from koala_tiny.scenes import words
from tests.support import bundles
from tests.support.judge import judge
from tests.support.koala_tiny import requests
from tests.support.server import Served, serving

WANTED = requests(1, 40)
KEY = "a key"


@pytest.fixture(scope="module")
def bundle() -> Path:
    return bundles.bundle("koala-tiny", batch=2, encoder=True)


@pytest.fixture(scope="module")
def served(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    link = tmp_path_factory.mktemp("bundles") / "tiny"
    link.symlink_to(bundle, target_is_directory=True)
    log = tmp_path_factory.mktemp("log") / "log"
    with serving(link, log=log, options=("--queue", "12"), env={"KOALA_API_KEY": KEY}) as served:
        yield served


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def alone(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline(bundle) as pipe:
        yield pipe


def pixels(file: bytes | str | None) -> Any:
    data = file if isinstance(file, bytes) else base64.b64decode(file or "")
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))


def drawn(alone: Pipeline, prompt: str, seed: int, **arguments: Any) -> Any:
    return np.asarray(alone(prompt, seed=[seed], **arguments).images[0])


def ask(served: Served, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    return served.post(path, body, **{"Authorization": f"Bearer {KEY}"} | headers)


def job(served: Served, number: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(served.get(f"/v1/jobs/{number}", Authorization=f"Bearer {KEY}")[1])
    return found


def until(served: Served, number: str, *statuses: str) -> dict[str, Any]:
    for _ in range(600):
        found = job(served, number)
        if found["status"] in statuses:
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def test_openai_generates_what_a_pipeline_draws(client: openai.OpenAI, alone: Pipeline, tmp_path: Path) -> None:
    prompt = words(WANTED[0])
    own = {"seed": 5, "num_inference_steps": 8, "guidance_scale": 2.5, "scheduler": "dpmpp_2m_karras"}
    answer = client.images.generate(prompt=prompt, model="tiny", n=3, size="128x128", extra_body=own)
    assert answer.data is not None and len(answer.data) == 3 and answer.size == "128x128"
    assert answer.usage is not None and answer.usage.input_tokens > 5
    settings = {"num_inference_steps": 8, "guidance_scale": 2.5, "scheduler": "dpmpp_2m_karras"}
    for index, each in enumerate(answer.data):
        assert (pixels(each.b64_json) == drawn(alone, prompt, 5 + index, **settings)).all()
    path = tmp_path / "one.png"
    path.write_bytes(base64.b64decode(answer.data[1].b64_json or ""))
    recipe = read_recipe(path)
    assert (recipe.seed, recipe.prompt, recipe.index, recipe.count) == (6, prompt, 0, 1)


def test_openai_streams_previews_and_then_the_picture(client: openai.OpenAI) -> None:
    prompt = words(WANTED[1])
    with client.images.generate(prompt=prompt, stream=True, partial_images=3, extra_body={"seed": 1}) as events:
        kinds = [(event.type, event) for event in events]
    assert [kind for kind, _ in kinds] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    previews = [pixels(event.b64_json) for _, event in kinds]
    distances = [np.abs(each.astype(int) - previews[-1]).mean() for each in previews]
    assert distances[0] > distances[2] > distances[3] == 0  # the noise goes
    assert all(judge(previews[-1], WANTED[1]).values())


def test_openai_edits_with_and_without_a_mask(client: openai.OpenAI, alone: Pipeline) -> None:
    prompt = words(WANTED[2])
    start = Image.fromarray(drawn(alone, words(WANTED[3]), 7))
    file, mask = BytesIO(), BytesIO()
    start.save(file, "PNG")
    hole = Image.new("RGBA", start.size, (0, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (64, 0, 128, 128))
    hole.save(mask, "PNG")
    settings = {"seed": 3, "strength": 0.6}
    plain = client.images.edit(image=("a.png", file.getvalue()), prompt=prompt, extra_body=settings)
    assert plain.data is not None
    assert (pixels(plain.data[0].b64_json) == drawn(alone, prompt, 3, image=[start], strength=0.6)).all()
    painted = client.images.edit(
        image=("a.png", file.getvalue()), mask=("m.png", mask.getvalue()), prompt=prompt, extra_body=settings
    )
    assert painted.data is not None
    white = Image.new("L", start.size)
    white.paste(255, (64, 0, 128, 128))
    ours = drawn(alone, prompt, 3, image=[start], mask_image=[white], strength=0.6)
    assert (pixels(painted.data[0].b64_json) == ours).all()


def test_openai_lists_models_and_gives_links_and_other_formats(served: Served, client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny" and "dpmpp_2m_karras" in model.schedulers  # type: ignore[attr-defined]
    answer = client.images.generate(prompt="a red circle", response_format="url", output_format="webp")
    assert answer.data is not None and answer.data[0].url is not None
    path = answer.data[0].url.removeprefix(served.url)
    status, file = served.get(path, Authorization=f"Bearer {KEY}")
    assert status == 200 and Image.open(BytesIO(file)).format == "WEBP"
    jpeg = [
        client.images.generate(
            prompt="a red circle", output_format="jpeg", output_compression=q, extra_body={"seed": 1}
        )
        for q in (20, 95)
    ]
    small, large = (len(each.data[0].b64_json or "") for each in jpeg if each.data)
    assert small < large


def test_every_mistake_is_told_in_words(served: Served, client: openai.OpenAI) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"size": "1024x1024"}, "size: expected 128x128, found '1024x1024'"),
        ({"n": 11}, "n: expected 10 at most, found 11"),
        ({"n": 10**400}, "n: expected 10 at most, found far more"),
        ({"n": 0}, "n: expected greater than or equal to 1, found 0"),
        ({"extra_body": {"sead": 1}}, "sead: expected a field that this server knows"),
        ({"extra_body": {"scheduler": "magic"}}, "scheduler: expected a class of diffusers"),
        ({"extra_body": {"num_inference_steps": 151}}, "num_inference_steps: expected 150 at most"),
        ({"extra_body": {"guidance_scale": 1e39}}, "guidance_scale"),
        ({"extra_body": {"seed": 2**64}}, "seed: expected less than"),
        ({"background": "transparent"}, "background: expected opaque or auto"),
        ({"prompt": "x" * 20_001}, "prompt: expected 20000 at most"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(openai.BadRequestError) as raised:
            client.images.generate(**{"prompt": "a red circle"} | arguments)
        assert sentence in raised.value.message
    with pytest.raises(openai.NotFoundError, match="model: expected tiny, found 'dall-e-3'"):
        client.images.generate(prompt="a red circle", model="dall-e-3")
    with pytest.raises(openai.BadRequestError, match="Pillow cannot read"):
        client.images.edit(image=("a.png", b"not a picture"), prompt="x")
    for body in (b"", b"{", b"[1]", b"[" * 100_000, b'{"prompt": "\\ud800"}', b'{"prompt": NaN}', b"\xff\xfe"):
        status, answer = ask(served, "/v1/images/generations", body)
        assert status == 400 and answer["error"]["type"] == "invalid_request_error", (body[:20], answer)
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    with closing(connection):
        headers = {"Content-Type": "application/json", "Content-Length": str(33 * 2**20)}
        connection.request("POST", "/v1/images/generations", headers=headers | {"Authorization": f"Bearer {KEY}"})
        answer = connection.getresponse()
        assert answer.status == 413  # before anything was sent
        assert "bytes at most, found more" in json.loads(answer.read())["error"]["message"]


def test_strangers_and_other_sites_are_refused(served: Served) -> None:
    body = {"prompt": "a red circle"}
    assert served.post("/v1/images/generations", body)[0] == 401
    assert served.post("/sdapi/v1/txt2img", body)[0] == 401
    assert ask(served, "/v1/images/generations", body, Authorization="Bearer another")[0] == 401
    basic = base64.b64encode(f"user:{KEY}".encode()).decode()
    assert ask(served, "/v1/jobs", body, Authorization=f"Basic {basic}")[0] == 202
    status, answer = ask(served, "/v1/images/generations", body, Origin="https://elsewhere.example")
    assert status == 403 and "--origin https://elsewhere.example" in answer["error"]["message"]
    for path in ("/healthz", "/readyz", "/metrics", "/", "/page.js", "/page.css"):
        assert served.get(path)[0] == 200
    assert served.get("/v1/jobs/unknown", Authorization=f"Bearer {KEY}")[0] == 404


def test_the_a1111_library_draws_and_lists(served: Served, alone: Pipeline) -> None:
    api = webuiapi.WebUIApi(baseurl=f"{served.url}/sdapi/v1", sampler="DPM++ 2M", steps=6)
    api.set_auth("user", KEY)
    prompt = words(WANTED[4])
    result = api.txt2img(prompt=prompt, seed=11, cfg_scale=2, width=128, height=128, batch_size=2, scheduler="Karras")
    settings = {"num_inference_steps": 6, "guidance_scale": 2, "scheduler": "dpmpp_2m_karras"}
    for index, image in enumerate(result.images):
        assert (np.asarray(image) == drawn(alone, prompt, 11 + index, **settings)).all()
    assert result.info["all_seeds"] == [11, 12] and "Sampler: DPM++ 2M Karras" in result.info["infotexts"][0]
    again = api.img2img(
        images=[result.images[0]], prompt=prompt, seed=1, cfg_scale=2, width=128, height=128, denoising_strength=0.5
    )
    begun = drawn(
        alone,
        prompt,
        1,
        image=[result.images[0]],
        strength=0.5,
        guidance_scale=2,
        scheduler="dpmpp_2m",
        num_inference_steps=6,
    )
    assert (np.asarray(again.image) == begun).all()
    assert {"Euler", "Euler a", "DPM++ 2M Karras"} <= {each["name"] for each in api.get_samplers()}
    assert api.get_options()["sd_model_checkpoint"] == "tiny"
    assert [each["model_name"] for each in api.get_sd_models()] == ["tiny"]
    assert api.get_progress()["progress"] == 0 and api.get_loras() == []
    with pytest.raises(RuntimeError, match="enable_hr"):
        api.txt2img(prompt=prompt, enable_hr=True, width=128, height=128)
    with pytest.raises(RuntimeError, match="size: expected 128x128"):
        api.txt2img(prompt=prompt)


def test_curl_draws(served: Served, alone: Pipeline, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    command = [curl, "-sS", f"{served.url}/v1/images/generations", "-H", "Content-Type: application/json"]
    body = json.dumps({"prompt": "a red circle", "seed": 9})
    answer = subprocess.run(
        [*command, "-H", f"Authorization: Bearer {KEY}", "-d", body], capture_output=True, check=True
    )
    picture = json.loads(answer.stdout)["data"][0]["b64_json"]
    assert (pixels(picture) == drawn(alone, "a red circle", 9)).all()


def test_jobs_queue_progress_and_cancel(served: Served) -> None:
    long = {"prompt": "a red circle", "num_inference_steps": 150, "n": 2}
    first = ask(served, "/v1/jobs", {**long, "previews": 3})[1]
    second = ask(served, "/v1/jobs", {**long, "num_inference_steps": 149})[1]
    until(served, first["id"], "generating")
    assert job(served, second["id"])["queue_position"] == 0
    third = ask(served, "/v1/jobs", long)[1]
    assert third["queue_position"] == 2
    shown = ask(served, f"/v1/jobs/{second['id']}/cancel", {})[1]
    assert shown["status"] == "cancelled" and job(served, third["id"])["queue_position"] in (0, None)
    assert ask(served, f"/v1/jobs/{third['id']}/cancel", {})[1]["status"] == "cancelled"
    started = time.monotonic()
    assert ask(served, f"/v1/jobs/{first['id']}/cancel", {})[1]["status"] == "cancelled"
    short = ask(served, "/v1/jobs", {"prompt": words(WANTED[5]), "seed": 2, "previews": 2})[1]
    status, events = served.get(f"/v1/jobs/{short['id']}/events", Authorization=f"Bearer {KEY}")
    assert time.monotonic() - started < 5  # 300 steps were dropped
    kinds = [line.removeprefix("event: ") for line in events.decode().splitlines() if line.startswith("event: ")]
    assert status == 200 and kinds.count("preview") == 2 and kinds[-1] == "completed"
    done = job(served, short["id"])
    status, file = served.get(done["data"][0]["url"], Authorization=f"Bearer {KEY}")
    assert all(judge(pixels(file), WANTED[5]).values())
    assert done["progress"] == 1 and done["data"][0]["recipe"]["seed"] == 2


def test_a_full_queue_says_when_to_come_back(served: Served) -> None:
    long = {"prompt": "a red circle", "num_inference_steps": 150}
    jobs, refusals = [], []
    for _ in range(20):
        status, answer = ask(served, "/v1/jobs", long)
        assert status in (202, 429)
        (jobs if status == 202 else refusals).append(answer["id"] if status == 202 else answer["error"])
    assert 13 <= len(jobs) <= 15 and len(refusals) == 20 - len(jobs)  # 12 wait, a batch of one or two is drawn
    assert refusals[0]["code"] == "queue_full" and "try again in" in refusals[0]["message"]
    assert served.metric("koala_num_queue_reqs") == 12
    for number in jobs:
        ask(served, f"/v1/jobs/{number}/cancel", {})
    assert served.metric("koala_num_queue_reqs") == 0


def test_a_client_that_goes_away_is_not_drawn_for(served: Served) -> None:
    before = served.metric(["koala_requests_total", 'model="tiny",status="cancelled"}'][0])
    long = {"num_inference_steps": 150}
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0, timeout=0.5) as impatient:
        with pytest.raises(openai.APITimeoutError):
            impatient.images.generate(prompt="a red circle", extra_body=long)
        stream = impatient.images.generate(
            prompt="a red circle", stream=True, partial_images=3, extra_body=long, timeout=30
        )
        with stream as events:
            next(iter(events))
    for _ in range(100):
        if served.metric("koala_num_running_reqs") == 0:
            break
        time.sleep(0.05)
    assert served.metric("koala_num_running_reqs") == 0 and served.metric("koala_requests_total") == before + 2


def test_the_log_has_no_prompts(served: Served) -> None:
    ask(served, "/v1/images/generations", {"prompt": "a secret red circle", "negative_prompt": "another secret"})
    assert served.lines()[-1]["path"] == "/v1/images/generations"
    assert "secret" not in served.log.read_text() and "Traceback" not in served.log.read_text()
