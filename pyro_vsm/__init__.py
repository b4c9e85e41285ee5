"""Variational Semantic Memory for few-shot image classification, in Pyro."""
