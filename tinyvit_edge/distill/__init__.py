"""Fast distillation: a teacher's sparse outputs on disk, replayed with their augmentation."""
