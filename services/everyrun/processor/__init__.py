"""The processor: a Faust app that applies the log to the result tables and publishes results and reports."""
