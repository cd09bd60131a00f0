"""Parts of `rebuild`."""
