"""Parts of `extract`."""
