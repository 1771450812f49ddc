"""Break Everyrun on purpose, then compare its report with what the emulator really did."""
