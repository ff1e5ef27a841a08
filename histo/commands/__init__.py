"""The `nucleate` command and its verbs."""
