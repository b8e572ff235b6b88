"""Watermarks in generated text: their options, the processors that write them and the detectors that find them."""
