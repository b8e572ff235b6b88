"""Flax blocks shared by the families; no family is named here."""
