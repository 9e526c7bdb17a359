"""CLIP tokenizers as one file each: ``tokenizer.json`` with padding and truncation inside.

The runtime then needs the ``tokenizers`` package alone, and what a pad or a literal "!" means travels with the file
(in SDXL's second tokenizer "!" is the padding token, id 0, wherever it stands).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from koala_bundle.errors import CheckpointError


def tokenizer_json(folder: Path, sequence_length: int) -> bytes:
    """Return tokenizer.json for a folder of vocab.json and merges.txt, or of tokenizer.json.

    Raises CheckpointError if there is no tokenizer or it is not CLIP's.
    """
    whole = (folder / "tokenizer.json").is_file()
    if not whole:
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise CheckpointError(
                    str(folder / name),
                    expected="a CLIP tokenizer (vocab.json and merges.txt, or tokenizer.json)",
                    found="no file",
                    fix="copy the tokenizer folders of the checkpoint as well",
                )
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds for a damaged file
        raise CheckpointError(
            str(folder),
            expected="a CLIP tokenizer",
            found=f"files that do not load ({str(error).splitlines()[0]})",
            fix="download or copy the tokenizer again",
        ) from error
    return with_static_length(tokenizer, sequence_length)


def with_static_length(tokenizer: Any, sequence_length: int) -> bytes:
    """Return tokenizer.json of a transformers CLIPTokenizer, always ``sequence_length`` ids long."""
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(max_length=sequence_length)
    backend.enable_padding(length=sequence_length, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    compact = json.dumps(json.loads(backend.to_str()), ensure_ascii=False, separators=(",", ":"))
    return compact.encode()
