"""Third parties as builders and judges: files made by peft, diffusers and lycoris, and what their loaders make of ours."""
