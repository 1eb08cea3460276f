"""Detection in images and videos of one's own."""
