"""Parts of `combine`."""
