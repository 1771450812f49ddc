"""A real Kafka, a real Postgres, the emulator and every service, as processes of one parent; from pip alone."""
