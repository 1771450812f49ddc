"""Breaking Everyrun on purpose, and comparing what it says afterwards with what really happened."""
