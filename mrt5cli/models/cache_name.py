"""The name of T5's generation cache, which transformers 5.24 changed."""

from __future__ import annotations

from dataclasses import fields

from transformers.modeling_outputs import Seq2SeqLMOutput

CACHE = "cache" if "cache" in {field.name for field in fields(Seq2SeqLMOutput)} else "past_key_values"
"""The name in transformers' calls and outputs: "cache" from 5.24, "past_key_values" before.

Our own functions accept both names with any version: transformers calls them by its own.
"""
