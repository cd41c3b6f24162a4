"""The `model:` part of a spec: presets, or any config of transformers' causal models."""

from typing import Any

# Parameters are counted for these by `parameters`; any other config of transformers' causal models can be written out.
PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "initializer_range": 0.06,
    },
}  # fmt: skip
