"""How files write keys: prefixes, suffixes, alphas; parse (file → AdapterSet) and render (AdapterSet → file)."""
