"""Third-party libraries kept from talking: their warnings and progress bars say nothing about our files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the block diffusers, transformers, peft and huggingface_hub print errors alone; then all is as it was.

    Our own messages and every exception pass. The settings are the process's: not for several threads at once.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers

    level, bars = transformers.get_verbosity(), transformers.is_progress_bar_enabled()
    transformers.set_verbosity_error()  # before diffusers is imported, which makes transformers warn
    from diffusers.utils import logging as diffusers

    diffusers_level, diffusers_bars = diffusers.get_verbosity(), diffusers.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    try:
        diffusers.set_verbosity_error()
        diffusers.disable_progress_bar()
        transformers.disable_progress_bar()
        disable_progress_bars()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.set_verbosity(level)
        diffusers.set_verbosity(diffusers_level)
        for was_on, enable in (
            (bars, transformers.enable_progress_bar),
            (diffusers_bars, diffusers.enable_progress_bar),
        ):
            if was_on:
                enable()
        if hub_bars:
            enable_progress_bars()
