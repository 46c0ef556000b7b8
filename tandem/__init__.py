"""Tandem: serving for encoder-decoder models."""
