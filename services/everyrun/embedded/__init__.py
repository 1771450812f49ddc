"""The embedded stack: a real Kafka, a real Postgres, the emulator and every service, as child processes of one command.

Everything is installed by pip, except Kafka's jars: they are fetched from Maven Central at the first start.
"""
