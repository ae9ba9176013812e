"""The abstract classes, the leafwise runner, and what wrappers share."""
