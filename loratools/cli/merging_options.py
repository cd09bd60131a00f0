"""The options of every command that merges adapters into weights, spelt and explained once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from loratools.cli import options
from loratools.cli.arguments import size
from loratools.cli.convert import DTYPES as PLAIN_DTYPES
from loratools.errors import UsageError, nearest

DTYPES = {
    **PLAIN_DTYPES,
    "fp8": "F8_E4M3", "fp8_e4m3": "F8_E4M3", "float8_e4m3fn": "F8_E4M3", "e4m3": "F8_E4M3",
    "fp8_e5m2": "F8_E5M2", "float8_e5m2": "F8_E5M2", "e5m2": "F8_E5M2",
}  # fmt: skip


def dtype_word(_context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A dtype as people spell it, as a callback of an option; 8-bit floats among them."""
    if value is None:
        return None
    if value.lower() not in DTYPES:
        hint = nearest(value.lower(), DTYPES) or "float16, bfloat16, float32, fp8_e4m3 or fp8_e5m2"
        raise UsageError(f"{parameter.opts[0]}: unknown dtype {value!r}", hint=hint)
    return DTYPES[value.lower()]


_OPTIONS = (
    click.option(
        "--scale",
        metavar="S",
        help="Multiply all adapters by a number, or by component: unet=0.8,text_encoder=0.5.",
    ),
    click.option(
        "--weights",
        multiple=True,
        metavar="PATTERN=W",
        help="Multiply layers that fit a pattern ('unet.down_blocks.*=0.5'; the last one that fits counts), or by a "
        "list of 12, 17, 20, 26 or 61 block weights.",
    ),
    click.option(
        "--components", callback=options.words, metavar="NAMES", help="Merge these components of the adapters."
    ),
    click.option(
        "--dtype",
        callback=dtype_word,
        metavar="DTYPE",
        help="Cast every float: float16, bfloat16, float32, fp8_e4m3, fp8_e5m2 (8 bits: matrices of the denoiser).",
    ),
    click.option(
        "--max-shard-size", callback=size, metavar="SIZE", help="Write a folder of files no larger than this (5GB)."
    ),
    click.option("--stochastic-rounding", is_flag=True, help="Round by dice, so that small changes survive in sum."),
    click.option("--seed", type=int, default=0, show_default=True, help="The seed of --stochastic-rounding."),
    click.option(
        "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to compute."
    ),
    options.allow_partial,
    options.allow_nonfinite,
    options.architecture,
    options.unsafe_pickle,
    options.overwrite,
    options.dry_run,
    options.if_needed,
    options.threads,
)


def merging(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command with all of them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
