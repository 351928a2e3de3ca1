"""The command ``multilevel study``: measures whether guided masking pays on given data."""
