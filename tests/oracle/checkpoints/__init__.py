"""Deterministic tiny random checkpoints in the Hub's layout, of every architecture that the specification names.

    python -m tests.oracle.checkpoints OUT_DIR [NAME ...]        without a name: lists the names

Each name gives OUT_DIR/NAME/ with config.json, model.safetensors, generation_config.json (where the model generates),
the tokenizer and processor files that the real checkpoint has, and golden.safetensors: inputs as "in.*", outputs of one
float32 forward pass on the CPU as "out.*", greedy ids as "gen.*". Every feature that the named real checkpoint switches
on is on; only widths, depths and vocabularies are small. A name that ends in "_b" is a second, differently shaped
configuration: head_dim is not hidden/heads, biases, tied and untied heads, other scaling of positions, short windows,
stored dtypes; about half of these are written in the older spelling of config.json (rope_theta, torch_dtype).
"""
