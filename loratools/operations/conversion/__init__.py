"""Parts of `convert`."""
