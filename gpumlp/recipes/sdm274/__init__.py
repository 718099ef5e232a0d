"""Report sdm274: regression and classification with a modular network."""
