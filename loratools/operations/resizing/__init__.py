"""Parts of `resize`."""
