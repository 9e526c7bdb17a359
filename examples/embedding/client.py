"""A client of ``koala serve`` with OpenAI's package: ``python client.py PROMPT FILE.png``, previews beside it."""

import os
import sys
from base64 import b64decode
from pathlib import Path

import openai

URL = os.environ.get("KOALA_URL", "http://127.0.0.1:8000/v1")
RETRIES = 5  # the package waits between them, as long as a server whose queue is full asks for


def draw(client: openai.OpenAI, prompt: str, file: Path) -> None:
    """Write the picture of a prompt. What OpenAI's API has no name for goes into ``extra_body``."""
    answer = client.images.generate(prompt=prompt, extra_body={"seed": 0, "guidance_scale": 2.0})
    for picture in answer.data or ():
        file.write_bytes(b64decode(picture.b64_json or ""))


def draw_with_previews(client: openai.OpenAI, prompt: str, file: Path) -> None:
    """Write the picture and, while it is drawn, two previews. Who leaves the block early cancels the picture."""
    with client.images.generate(prompt=prompt, stream=True, partial_images=2, extra_body={"seed": 0}) as events:
        for event in events:
            if event.type == "image_generation.partial_image":
                preview = file.with_name(f"{file.stem}-{event.partial_image_index}.jpg")
                preview.write_bytes(b64decode(event.b64_json))
            elif event.type == "image_generation.completed":
                file.write_bytes(b64decode(event.b64_json))


def main(prompt: str, file: str) -> None:
    """Draw with previews, and say in a sentence what went wrong."""
    key = os.environ.get("KOALA_API_KEY", "none")
    try:
        with openai.OpenAI(base_url=URL, api_key=key, max_retries=RETRIES, timeout=300) as client:
            draw_with_previews(client, prompt, Path(file))
    except openai.APIStatusError as error:  # a wrong prompt, key or model; a queue that stays full
        sys.exit(f"{error.status_code}: {error.message}")
    except openai.APIError as error:  # no server at all, or one that failed in the middle of a stream
        sys.exit(f"{URL}: {error.message}")


if __name__ == "__main__":
    main(*sys.argv[1:])
