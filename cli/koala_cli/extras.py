"""Optional packages: is what a subcommand needs installed?"""

from __future__ import annotations

import logging
from importlib.util import find_spec

from koala_bundle.errors import InputError


def require_packages(packages: tuple[str, ...], extra: str) -> None:
    """Raise InputError with the command that installs what is missing of ``packages``."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InputError(
            "this command",
            expected=f"the packages of koala-trt[{extra}]",
            found=f"no {', '.join(missing)}",
            fix=f"install them with `pip install koala-trt[{extra}]`",
        )


def quiet_libraries() -> None:
    """Silence the libraries' own progress bars and advice, which would break up ours."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
