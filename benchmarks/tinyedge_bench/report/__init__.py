"""Pages, pictures and terminal plots of kept results."""
