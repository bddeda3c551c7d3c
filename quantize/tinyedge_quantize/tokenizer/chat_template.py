"""The chat template of a tokenizer folder, where transformers' several generations keep it."""

from __future__ import annotations

import string as alphabet
from typing import Any

from tinyedge_quantize.metadata import MetadataEntry, string, strings

from .files import MAX_TEMPLATE_BYTES, TokenizerFolder, as_dict, as_list, as_text, read_json, read_text, wrong

_NAME_CHARACTERS = frozenset(alphabet.ascii_letters + alphabet.digits)


def chat_template_entries(folder: TokenizerFolder) -> dict[str, MetadataEntry]:
    """The template's entries, none when there is no template.

    Precedence is gguf's (gguf-py/gguf/vocab.py, SpecialVocab): `chat_template` in tokenizer_config.json (a null there means
    none), then chat_template.jinja with additional_chat_templates/*.jinja, then chat_template.json. gguf looks at the latter
    two only beside a tokenizer_config.json; we read them without it too.
    """
    tokenizer_config = folder.tokenizer_config or {}
    kept = "chat_template" in tokenizer_config
    template = tokenizer_config["chat_template"] if kept else _template_files(folder)
    if template is None:
        return {}
    if isinstance(template, str):
        return _one(template)
    if isinstance(template, list):
        return _named(template)
    raise wrong(template, "a template or a list of named templates", "chat_template")


def _template_files(folder: TokenizerFolder) -> Any:
    jinja, wrapped = folder.path / "chat_template.jinja", folder.path / "chat_template.json"
    if jinja.is_file():
        template = read_text(jinja, MAX_TEMPLATE_BYTES)
        more = sorted((folder.path / "additional_chat_templates").glob("*.jinja"))
        if not more:
            return template
        named = [{"name": path.stem, "template": read_text(path, MAX_TEMPLATE_BYTES)} for path in more]
        return [{"name": "default", "template": template}, *named]
    return read_json(wrapped).get("chat_template") if wrapped.is_file() else None


def _named(choices: list[Any]) -> dict[str, MetadataEntry]:
    """What GGUFWriter.add_chat_template writes for named templates: each under its name, their names, the default one."""
    entries: dict[str, MetadataEntry] = {}
    names: list[str] = []
    default: str | None = None
    for choice in as_list(choices, "chat_template"):
        fields = as_dict(choice, "an entry of chat_template")
        raw_name = as_text(fields.get("name", ""), "the name of a chat template")
        name = "".join(c if c in _NAME_CHARACTERS else "_" for c in raw_name)
        template = fields.get("template")
        if not name or template is None:
            continue
        text = as_text(template, f"the chat template {name}")
        if name == "default":
            default = text
            continue
        if text:
            entries[f"tokenizer.chat_template.{name}"] = string(text)
        if name not in names:
            names.append(name)
    if names:
        entries["tokenizer.chat_templates"] = strings(names)
    return entries if default is None else entries | _one(default)


def _one(template: str) -> dict[str, MetadataEntry]:
    as_text(template, "chat_template")
    return {"tokenizer.chat_template": string(template)} if template else {}
