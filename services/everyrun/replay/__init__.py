"""The replay service, and the code of the commands archive, rebuild, audit, as-of, history and replay."""
