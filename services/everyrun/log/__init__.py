"""Kafka: the events, the topics, reading and writing them."""
