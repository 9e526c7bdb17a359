"""Draws a picture: ``python script.py BUNDLE PROMPT FILE.png``."""

import sys
from pathlib import Path

from koala_runtime import InputError, KoalaError, Pipeline, to_png


def draw(bundle: str, prompt: str, file: str) -> None:
    """Write a PNG file that carries its recipe: ``koala run BUNDLE --like FILE`` draws the same picture again."""
    with Pipeline(bundle) as pipe:
        result = pipe(prompt, seed=0)
    Path(file).write_bytes(to_png(result.images[0], result.recipes[0]))


if __name__ == "__main__":
    try:
        draw(*sys.argv[1:])
    except KoalaError as error:
        print(error, file=sys.stderr)  # one sentence: what, expected, found, fix
        sys.exit(2 if isinstance(error, InputError) else 1)  # 2: prompt or bundle; 1: the GPU
