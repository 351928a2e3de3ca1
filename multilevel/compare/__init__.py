"""The command ``multilevel compare``: the cost and accuracy of every hypergradient solver at one point."""
