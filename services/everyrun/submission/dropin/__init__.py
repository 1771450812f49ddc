"""Serve Extend's own paths, so that programs written for Extend's SDK use Everyrun without a change."""
