"""Parts of `apply`."""
