"""One blueprint a pipeline: the block layout and module names of the real model, with narrow layers."""
