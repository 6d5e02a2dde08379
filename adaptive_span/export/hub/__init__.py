"""The model's code, which travels with its weights: `AutoModelForCausalLM` reads both files from an exported folder.

They import torch and transformers alone, and nothing of this package, which whoever loads the folder need not have.
"""
