"""The submission service's HTTP routes, one module for each resource."""
