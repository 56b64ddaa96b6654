"""Side-by-side runs against peers; see README.md. Each script prints ratios, medians and their spread."""
