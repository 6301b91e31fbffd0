"""Shape and generation defaults of the model, as written to its folder."""

import json
import os

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 4080, "eos_token_id": [4081, 4088, 4089], "pad_token_id": 4084, "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 256, "initializer_range": 0.02, "intermediate_size": 768, "max_position_embeddings": 8192, "mlp_bias": False,
    "num_attention_heads": 4, "num_hidden_layers": 8, "num_key_value_heads": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-5,
    "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 1024,
                     "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 4096,
}
GENERATION = {"bos_token_id": 4080, "eos_token_id": [4081, 4088, 4089], "pad_token_id": 4084, "do_sample": True, "temperature": 0.3,
              "top_p": 0.9}


def write(out):
    """Writes config.json and generation_config.json."""
    os.makedirs(out, exist_ok=True)
    for name, value in (("config.json", CONFIG), ("generation_config.json", GENERATION)):
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            f.write(json.dumps(value, indent=2) + "\n")
