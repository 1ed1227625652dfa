"""A Hugging Face model, hooked by role."""
