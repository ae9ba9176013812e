"""One compiled call: a tree as arrays and a static part, and a user's function with its key."""
