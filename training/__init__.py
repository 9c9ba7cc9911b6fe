"""The bootstrapping pipeline: playroom data, tokenizer, base, dynamics and world model training, evaluation. Run from a checkout."""
