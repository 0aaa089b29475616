"""HTML: the report of a result and the page that compares several; one file each, nothing loaded from elsewhere."""
