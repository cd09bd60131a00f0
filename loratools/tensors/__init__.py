"""Bytes ↔ named lazy tensors. Nothing here has ever heard of LoRA."""
