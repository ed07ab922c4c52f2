"""Generated programs: drawn, searched, shrunk."""
