"""Postgres: connections, named SQL, migrations."""
