"""Use Postgres: connections, named SQL, migrations, tokens, and who owns each table."""
