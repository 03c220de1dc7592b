"""The demo page: its files, its routes, and how it sees the points service."""
