"""Where diffusers, peft and transformers are met: pipelines made on the spot, and adapters made for them."""
