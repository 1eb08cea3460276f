"""Pages, charts and tables of a study: drawing only."""
