"""Parts of `recipe`."""
