"""Scripts that keep the course in order; run them from the root of the repository."""
