"""Parts of `merge`."""
