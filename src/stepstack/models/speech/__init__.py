"""Speech as tokens: the dual codebook's layout, tokenizers, codebooks, mel spectrograms and decoders."""
