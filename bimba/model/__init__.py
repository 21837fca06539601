"""The model, steps [3] to [5]. Empty on purpose: the compressor can be imported where only torch is installed."""
