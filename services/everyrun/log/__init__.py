"""The log: Kafka's topics, their events, and reading and writing them."""
