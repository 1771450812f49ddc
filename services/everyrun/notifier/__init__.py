"""The notifier sends events on to receivers by HTTP: Extend's run events in Extend's format, and Everyrun's own."""
