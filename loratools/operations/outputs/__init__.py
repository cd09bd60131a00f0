"""What every verb that writes an adapter shares: files, record and proof."""
