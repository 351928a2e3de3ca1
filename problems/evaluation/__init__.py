"""Evaluates losses at substituted parameters, with recorded randomness and buffers."""
