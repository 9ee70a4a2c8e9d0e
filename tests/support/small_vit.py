"""The configuration of a vision transformer of one small layer, for tiles of 16 pixels."""

SMALL_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 4,
    "image_size": 16,
}
