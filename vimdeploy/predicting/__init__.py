"""Predicting at any scale: sources of images in, rows out as they come, shards that survive a kill."""
