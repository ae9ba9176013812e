"""The loop that minimizes until convergence."""
