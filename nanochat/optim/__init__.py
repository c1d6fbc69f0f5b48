"""Muon, AdamW, which parameter gets which, and schedules over steps."""
