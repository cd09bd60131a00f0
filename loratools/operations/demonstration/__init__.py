"""Parts of `demo`."""
