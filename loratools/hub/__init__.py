"""The Hugging Face Hub: references to it, and what of it lies, or is put, on this machine."""
