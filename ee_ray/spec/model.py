"""The `model:` part of a spec: a preset, any config of transformers' causal models, or a checkpoint to go on from."""

from typing import Annotated, Any, Literal

from pydantic import WithJsonSchema

from ee_ray.spec.strict import Strict


class Checkpoint(Strict):
    """A folder that transformers saved (config.json, *.safetensors) to go on from; its content is its identity."""

    checkpoint: str
    """the folder; a relative path starts from the sweep file"""


Preset = Literal["nano", "smollm2-135m", "smollm2-1b"]
# What transformers' config takes is checked when the model is built: editors only see what every config must have.
_CONFIG = {
    "type": "object",
    "required": ["model_type"],
    "properties": {"model_type": {"type": "string"}, "vocab_size": False},
}
ModelField = Preset | Checkpoint | Annotated[dict[str, Any], WithJsonSchema(_CONFIG)]

# A model's vocabulary follows from the tokenizer. smollm2-135m is SmolLM2-135M's own config, and smollm2-1b the paper's
# table 2; the paper has no table for the smaller one. Context is the sweep's sequence_length.
_SMOLLM2 = {
    "model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}, "rms_norm_eps": 1e-5,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "initializer_range": 0.06,
    },
    "smollm2-135m": {
        **_SMOLLM2, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True, "initializer_range": 576**-0.5,
    },
    # 1.03B parameters is what table 2's shape has with a head of its own; with tied embeddings it would be 0.95B.
    "smollm2-1b": {
        **_SMOLLM2, "hidden_size": 1728, "intermediate_size": 4608, "num_hidden_layers": 24,
        "num_attention_heads": 27, "num_key_value_heads": 27, "tie_word_embeddings": False, "initializer_range": 1728**-0.5,
    },
}  # fmt: skip
