"""Detection in any images and videos."""
