"""What is known of a model, as one page to look at."""
