"""Links: transformations of the updates, one family a file."""
