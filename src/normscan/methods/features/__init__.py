"""Features of pretrained networks: memory, density, distillation."""
