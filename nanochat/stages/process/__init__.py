"""The process of a stage: signals, and several processes that train together."""
