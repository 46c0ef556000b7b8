"""`LLM`: the engine in this process, for offline work. No cluster, no Ray."""

from tandem.offline.llm import LLM

__all__ = ["LLM"]
