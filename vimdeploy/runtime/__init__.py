"""Runs files and plans: numbers in, numbers out. No torch."""
