"""Networks that levels train, and what they are loaded from."""
