"""The command line: options in, one operation, its result as text or JSON. No file is opened, no tensor touched."""
