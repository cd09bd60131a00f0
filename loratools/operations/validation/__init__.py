"""Parts of `validate`."""
