"""Third-party libraries kept from talking: their warnings and progress bars say nothing about our files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block diffusers and transformers (and, through it, the Hub's client) print errors alone.

    Our own messages and every exception pass; afterwards all is as it was. The settings are the process's: not for
    several threads at once.
    """
    from transformers.utils import logging as transformers

    level = transformers.get_verbosity()
    transformers.set_verbosity_error()  # before diffusers is imported, which makes transformers warn
    from diffusers.utils import logging as diffusers

    before = [(transformers, level), (diffusers, diffusers.get_verbosity())]
    bars = [library for library, _ in before if library.is_progress_bar_enabled()]
    try:
        diffusers.set_verbosity_error()
        for library in bars:
            library.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for library, verbosity in before:
            library.set_verbosity(verbosity)
        for library in bars:
            library.enable_progress_bar()
