"""VMamba."""
