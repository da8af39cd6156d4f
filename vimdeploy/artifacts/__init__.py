"""What lies on disk: recipes, manifests, images, and writing files whole or not at all."""
