"""Losses evaluated at substituted parameters, with everything random and every buffer as they were recorded."""
