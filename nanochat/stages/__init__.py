"""One plain function a stage: specification and context to result."""
