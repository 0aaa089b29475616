"""Markdown: tables, the comparison of results, and the model card."""
