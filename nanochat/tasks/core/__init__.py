"""The DCLM CORE benchmark: its bundle and its prompts."""
