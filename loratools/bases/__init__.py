"""Which key of which file is which weight of a base model, and what a file that is no adapter is."""
