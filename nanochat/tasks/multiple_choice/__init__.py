"""Questions with choices: base models compare the choices by log-probability, chat models answer with a letter."""
