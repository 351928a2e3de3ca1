"""The command ``multilevel study``: does guided masking pay on this data?"""
