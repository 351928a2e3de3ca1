"""Texts as data."""
