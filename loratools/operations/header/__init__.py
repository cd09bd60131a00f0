"""What the metadata of a file say, and how they are changed."""
