"""Named optimizers: compositions of links."""
