"""Weight files: their layouts, matching, loading, conversion and saving."""
