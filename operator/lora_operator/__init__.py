"""The operator: watches LoRAFineTune resources and runs the trainer image for them."""
