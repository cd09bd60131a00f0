"""Work shared among threads, and how far it is."""
