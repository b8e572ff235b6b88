"""Log-probabilities of given text: `score`, `perplexity`, `choose`, `prefer`, and the lm-evaluation-harness adapter."""
