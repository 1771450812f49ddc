"""The processor: a Faust app that feeds the projection and publishes what it makes of the log."""
