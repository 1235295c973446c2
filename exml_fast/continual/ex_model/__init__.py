"""Ex-Model Distillation: one model learns from a stream of experts without their data (Carta 2022)."""
