"""Training in half precision: master weights, compensation, rounding, loss scaling."""
