"""A developers' stand-in for the Hugging Face Hub: a small real model and the server that offers it."""
