"""Data: which modules each architecture has, and how each naming spells them. No tensors, no files, no adapters."""
