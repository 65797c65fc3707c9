"""One self-contained HTML page: styles and drawings inside, nothing fetched, no script."""
