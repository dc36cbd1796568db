"""What carries a trained model's weights to another model, one file each, exporting Transform; found by name."""
