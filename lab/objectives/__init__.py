"""One file an objective; each exports `Objective`: inputs, loss, sample."""
