"""From recipe sections to stage specifications: every derived number."""
