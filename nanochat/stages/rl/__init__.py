"""The rl stage: it trains a chat model on its own answers, which a task grades."""
