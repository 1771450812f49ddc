"""The replay service and its commands: archive, rebuild, audit, as-of, history, replay."""
