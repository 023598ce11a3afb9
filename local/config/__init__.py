"""The configuration: `load_config` resolves it, schema.py has its keys and types, methods.py the decoding methods."""

from local.config.load import config_from_dict, config_hash, load_config, named_files, to_dict

__all__ = ["config_from_dict", "config_hash", "load_config", "named_files", "to_dict"]
