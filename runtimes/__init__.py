"""One module per backend behind one `Session`: arrays in, arrays out; pipelines on top."""
