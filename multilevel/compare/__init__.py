"""The command ``multilevel compare``: what every hypergradient solver costs at one point, and how accurate it is."""
