"""The verbs: values in, a frozen result out. Everything a command does, a program can do through these."""
