"""One file a tokenizer; each exports `Model`: pictures -> tokens or latents -> pictures, trained by objective `reconstruct`.

model({'image': floats [B, side, side, channels] in [-1, 1], 'keys': one key an example}) -> a dict:
  image: the picture restored, of the same shape, as training sees it.
  cost: [B], what `objective.weight` multiplies, nats or squared distance a number of the picture.
  bits: [B], what the code of a picture costs.
  tokens: int [B, h, w], where codes are discrete.
encode(image) -> {'tokens': int32 [B, h, w]} or {'image': latents [B, h, w, code]}, without noise; decode(what encode gives) -> pictures.
vocabulary: how many tokens there are; 0 where codes are continuous.
"""
