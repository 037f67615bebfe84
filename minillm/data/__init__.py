"""From text to packed rows and batches: tokenizer, corpus, packing, rows, loader."""
