"""The training loop and its parts; nothing in decoding or scoring imports them."""
