"""Tasks whose answers the model writes out and a rule grades: GSM8K, HumanEval and spelling."""
