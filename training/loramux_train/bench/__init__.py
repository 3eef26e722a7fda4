"""What `loramux bench train` measures: the trainer against a plain loop of PEFT and diffusers."""
