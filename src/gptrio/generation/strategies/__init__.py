"""Decoding modes other than greedy search and sampling."""
