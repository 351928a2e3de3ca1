"""Networks that levels train, and the checkpoints they are loaded from."""
