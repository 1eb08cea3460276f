"""The statistics of comparisons, as functions of arrays: they know nothing of studies, files or pages."""
