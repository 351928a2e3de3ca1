"""Settings, composed from the command line, and the recipe that they describe."""

from multilevel.configuration.composition import build_recipe, compose_config

__all__ = ["build_recipe", "compose_config"]
