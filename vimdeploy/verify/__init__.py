"""Compares any two forms of one model and says where they part."""
