"""YAML as configurations and model cards use it: no aliases, no merge keys, not long.

A few hundred bytes of aliases that refer to aliases unfold to more than memory, and PyYAML takes ten seconds for a megabyte.
"""

from __future__ import annotations

from typing import Any

# Real model cards and LitGPT configurations are below 20 KB.
MAX_YAML_BYTES = 64 * 1024


def load_plain_yaml(data: bytes) -> Any:
    """The value in a YAML document; raises ValueError when it is damaged, too long, or uses aliases."""
    import yaml

    class PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it uses aliases")
            return super().compose_node(parent, index)

    if len(data) > MAX_YAML_BYTES:
        raise ValueError(f"it has more than {MAX_YAML_BYTES} bytes")
    try:
        return yaml.load(data, PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from error
    except (RecursionError, UnicodeError, TypeError, OverflowError) as error:
        raise ValueError(type(error).__name__) from error
