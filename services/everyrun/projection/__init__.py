"""The heart: what the events mean. merge, choose and match; apply, which makes tables of them; the log reader."""
