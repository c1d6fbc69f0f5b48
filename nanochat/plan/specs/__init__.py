"""The specification of each stage: every number that its process needs. Serialised to JSON for the child process."""
