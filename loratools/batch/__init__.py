"""The verbs over very many files: a manifest, workers, and a state that survives whatever stops them."""
