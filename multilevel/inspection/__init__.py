"""The command ``multilevel inspect``: scores an exported model as an inspection line would use it, and reports it."""
