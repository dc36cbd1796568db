"""One file a model; each exports `Model`."""
