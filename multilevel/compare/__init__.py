"""The command ``multilevel compare``: cost and accuracy of every hypergradient solver at one point."""
