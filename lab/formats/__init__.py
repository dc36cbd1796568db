"""One file a published format of weights; each exports `Format`, which `lab import` and `lab export` find by name.

classes: what config.json may call the model (`_class_name`, or an entry of `architectures`).
only: optional; keys of config.json that tell formats of one class apart, with their values.
older: optional; {part of a tensor's name in older files: the same in newer ones}.
model: our model's name, of which `lab export` writes this format.
file: name of the safetensors file that is written.
config(theirs): from their config.json, sections `model` (name, knobs, options), `base`, `objective` and `data` (sizes that a source gives).
theirs(config): their config.json; `config` is complete: its model section has every knob and option, data and objective's sizes too.
rules(config): `Rule`s, `Constant`s and `Rest` of lab/formats/rules.py, of the same complete config.
"""
