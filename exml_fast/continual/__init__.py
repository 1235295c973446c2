"""Continual learning from a stream of trained models (Carta 2022)."""
