"""Tasks of lm-evaluation-harness on our scoring engine. It needs the extra `nanochat-run[lm-eval]`.

Only `installed` may be imported without the extra.
"""
