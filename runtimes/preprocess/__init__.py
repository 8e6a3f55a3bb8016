"""What turns text into arrays before a model runs: tokenizers and chat templates, equal to transformers'."""
